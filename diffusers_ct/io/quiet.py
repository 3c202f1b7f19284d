"""pydicom kept silent: its warnings and its log quote values of elements, which may be a patient's name."""

import logging
import threading
import warnings
from typing import Any

_lock = threading.Lock()
_inside = 0
_was_disabled = False


class quiet_pydicom:
    """No warning is shown and nothing of pydicom is logged within; several threads may be in it at once."""

    def __enter__(self) -> None:
        global _inside, _was_disabled
        logger = logging.getLogger("pydicom")
        with _lock:
            if _inside == 0:
                _was_disabled, logger.disabled = logger.disabled, True
            _inside += 1
        # The filters are the whole process's, too.
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.simplefilter("ignore")

    def __exit__(self, *exception: Any) -> None:
        global _inside
        self._warnings.__exit__(*exception)
        with _lock:
            _inside -= 1
            if _inside == 0:
                logging.getLogger("pydicom").disabled = _was_disabled
