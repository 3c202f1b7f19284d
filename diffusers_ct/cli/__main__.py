"""`python -m diffusers_ct.cli`: the command line for launchers that take a module (`accelerate launch -m`)."""

from . import main

main()
