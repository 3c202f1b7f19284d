"""The demo: a page on which a scan is dropped, restored, looked at and taken home. `diffusers-ct demo` serves it.

`pictures` and `session` know nothing of Gradio; `page` is its blocks, `serving` the server.
"""
