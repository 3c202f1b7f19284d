"""pydicom kept silent: its warnings and its log quote values of elements, which may be a patient's name."""

import logging
import threading
import warnings
from typing import Any

_lock = threading.Lock()
_inside = 0
_was_disabled = False
_filters = warnings.catch_warnings()


class quiet_pydicom:
    """No warning is shown and nothing of pydicom is logged within; several threads may be in it at once."""

    def __enter__(self) -> None:
        global _inside, _was_disabled, _filters
        logger = logging.getLogger("pydicom")
        with _lock:  # both are the whole process's: the first to enter keeps them, the last to leave puts them back
            if _inside == 0:
                _was_disabled, logger.disabled = logger.disabled, True
                _filters = warnings.catch_warnings()
                _filters.__enter__()
                warnings.simplefilter("ignore")
            _inside += 1

    def __exit__(self, *exception: Any) -> None:
        global _inside
        with _lock:
            _inside -= 1
            if _inside == 0:
                logging.getLogger("pydicom").disabled = _was_disabled
                _filters.__exit__(*exception)
