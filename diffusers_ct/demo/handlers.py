"""What the controls of the page do: from their values to updates of the page. Mistakes become sentences on it."""

import html
import logging
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gradio as gr

from ..io import SeveralSeriesError
from ..pipelines import ContractError
from .session import Choices, DemoModel, DemoSession
from .views import WINDOWS
from .visitors import Visitors
from .words import PROMISES, facts_of, name_of, sentence_of, shown, without_paths

_log = logging.getLogger(__name__)
_LOOK_EVERY_S = 0.25
Updates = dict[Any, Any]


def status(sentences: Sequence[str], kind: str = "") -> str:
    """Sentences as the page's line of status.

    Args:
        sentences: plain text.
        kind: "error", "done", or "" for what is under way.
    """
    role = "alert" if kind == "error" else "status"
    lines = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in sentences)
    return f'<div class="ct-status ct-{kind or "busy"}" role="{role}">{lines}</div>'


class Handlers:
    """Of one page.

    Args:
        model: to restore with; one scan at a time, the others wait.
        visitors: of the page.
        part: the page's controls by name.
    """

    def __init__(self, model: DemoModel, visitors: Visitors, part: Mapping[str, Any]) -> None:
        self._model, self._visitors, self._part = model, visitors, part
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="restoration")

    def drop(
        self, files: list[str] | None, straighten: bool, assume_hu: bool, window: str, limit: float, request: gr.Request
    ) -> Updates:
        """A scan was dropped."""
        session = self._session(request)
        paths = [Path(file) for file in files or ()]
        try:
            session.take(paths)
        except Exception as error:
            return self._updates(self._refused(session, error) | {"drop": None})
        finally:
            for path in paths:  # Gradio's own folder of one upload
                if path.parent.is_dir() and not any(path.parent.iterdir()):
                    path.parent.rmdir()
        return self._updates(self._read(session, None, straighten, assume_hu, window, limit) | {"drop": None})

    def read_again(
        self, stack: int | None, straighten: bool, assume_hu: bool, window: str, limit: float, request: gr.Request
    ) -> Updates:
        """One of several series was chosen, or a box on reading ticked."""
        session = self._session(request)
        if not session.path.exists() or (session.stacks and stack is None):
            return self._updates({"status": gr.skip()})
        return self._updates(self._read(session, stack, straighten, assume_hu, window, limit))

    def _read(
        self, session: DemoSession, stack: int | None, straighten: bool, assume_hu: bool, window: str, limit: float
    ) -> dict[str, Any]:
        try:
            scan = session.read(stack=stack, resample=straighten, assume_hu=assume_hu)
        except SeveralSeriesError:
            offered = [(name_of(one, k + 1), k) for k, one in enumerate(session.stacks)]
            return self._without_scan() | {
                "status": status(["The scan holds several series: choose one below."]),
                "series": gr.update(choices=offered, value=None, visible=True),
            }
        except Exception as error:
            return self._refused(session, error)
        depth = scan.shape[0]
        middle = depth // 2 + 1
        notes = [without_paths(note, session.path) for note in session.notes]
        return {
            "status": status(facts_of(scan, notes), "done"),
            "series": gr.update(visible=bool(session.stacks)),
            "slice": gr.update(maximum=max(depth, 2), value=middle, interactive=depth > 1),
            "viewer": session.view(middle, window=WINDOWS[window], difference_hu=limit),
            "overrides": gr.update(visible=False, choices=[], value=[]),
            "restore": gr.update(interactive=True),
            "write": gr.update(interactive=False),
            "files": None,
        }

    def _refused(self, session: DemoSession, error: Exception) -> dict[str, Any]:
        return self._without_scan() | {"status": self._told(session, error)}

    def _without_scan(self) -> dict[str, Any]:
        return {
            "series": gr.update(visible=False),
            "viewer": None,
            "overrides": gr.update(visible=False, choices=[], value=[]),
            "restore": gr.update(interactive=False),
            "write": gr.update(interactive=False),
            "files": None,
        }

    def show(self, number: int, window: str, limit: float, request: gr.Request) -> dict[str, Any] | None:
        """Another slice, window or range of colours."""
        return self._session(request).view(int(number), window=WINDOWS[window], difference_hu=limit)

    def restore(
        self,
        dose: float,
        steps: int,
        samples: int,
        seed: float,
        kernel: str,
        i0: float | None,
        ignored: list[str],
        number: int,
        window: str,
        limit: float,
        request: gr.Request,
    ) -> Iterator[Updates]:
        """Restores the scan; meanwhile tells how far it is."""
        session = self._session(request)
        session.ready()
        said = ["Waiting for the scan of another visitor ..."]

        def work() -> None:
            said[0] = "Starting ..."
            choices = Choices(
                dose_fraction=dose if dose < 1 else None,
                steps=int(steps),
                samples=int(samples),
                seed=int(seed or 0),
                kernel=kernel or None,
                i0=i0 or None,
                ignore_contract=tuple(ignored or ()),
            )
            session.restore(self._model, choices, lambda text: said.__setitem__(0, text))

        busy = {"restore": gr.update(interactive=False), "stop": gr.update(visible=True)}
        idle = {"restore": gr.update(interactive=session.scan is not None), "stop": gr.update(visible=False)}
        future = self._worker.submit(work)
        yield self._updates(busy | {"status": status(said), "files": None, "write": gr.update(interactive=False)})
        shown_last = ""
        while not future.done():
            time.sleep(_LOOK_EVERY_S)
            if said[0] != shown_last:
                shown_last = said[0]
                yield self._updates({"status": status([shown_last])})
        error = future.exception()
        if error is None and session.restored is not None:
            sentences = [shown(sentence, session.scan) for sentence in session.restored.sentences]
            yield self._updates(
                idle
                | {
                    "status": status(sentences, "done"),
                    "viewer": session.view(int(number), window=WINDOWS[window], difference_hu=limit),
                    "write": gr.update(interactive=True),
                }
            )
            return
        update: dict[str, Any] = idle | {"write": gr.update(interactive=session.restored is not None)}
        if isinstance(error, ContractError):
            names = [*error.outside, *(name for name in ignored or () if name not in error.outside)]
            update["overrides"] = gr.update(visible=True, choices=[(PROMISES.get(name, name), name) for name in names])
        if isinstance(error, Exception):
            update["status"] = self._told(session, error)
        yield self._updates(update)

    def stop(self, request: gr.Request) -> None:
        """Ends the visitor's restoration."""
        self._session(request).stop()

    def write(self, file_format: str, with_uncertainty: bool, request: gr.Request) -> Updates:
        """Writes the result, to be downloaded."""
        session = self._session(request)
        try:
            files = session.write(file_format, with_uncertainty=with_uncertainty)
        except Exception as error:
            return self._updates({"status": self._told(session, error), "files": None})
        return self._updates({"files": gr.update(value=[str(file) for file in files], visible=True)})

    def close(self, request: gr.Request) -> None:
        """The tab was closed."""
        if request.session_hash is not None:
            self._visitors.close(request.session_hash)

    def _updates(self, values: Mapping[str, Any]) -> Updates:
        return {self._part[name]: value for name, value in values.items()}

    def _session(self, request: gr.Request) -> DemoSession:
        if request.session_hash is None:
            raise gr.Error("This page is for browsers.")
        return self._visitors.of(request.session_hash)

    def _told(self, session: DemoSession, error: Exception) -> str:
        sentence = sentence_of(error, session.path, session.scan)
        if sentence.startswith("The program failed"):  # where, without what it says, which may name a patient
            _log.error("%s\n%s", type(error).__name__, "".join(traceback.format_tb(error.__traceback__)))
        return status([sentence], "error")
