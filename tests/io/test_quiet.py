"""pydicom's log and warnings quote values; reading lets none of them out."""

import logging
import threading
import warnings

import pydicom
import pytest

from diffusers_ct.io import list_series, read_volume
from diffusers_ct.io.quiet import quiet_pydicom
from tests.io.synthetic import hu_of, write_series


def test_a_name_in_a_garbled_header_reaches_no_log(tmp_path, caplog, capfd):
    secret = "Quixote"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        paths = write_series(tmp_path / "s", hu_of((2, 16, 12)), PatientBirthDate=secret, StudyTime=secret)
    logging.getLogger("pydicom").warning("the log is open before: %s", secret)
    assert secret in caplog.text + capfd.readouterr().err
    caplog.clear()
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        read_volume(tmp_path / "s")
        list_series(paths[0])
    out = capfd.readouterr()
    assert secret not in caplog.text + out.err + out.out + "".join(str(w.message) for w in seen)


def test_what_it_silences_does_speak_otherwise(caplog):
    """pydicom does log a value: were it to stop, this file would test nothing."""

    def speak():
        pydicom.dataelem.DataElement(0x00100030, "DA", "Quixote", validation_mode=pydicom.config.WARN)
        pydicom.config.logger.warning("Quixote")

    with pytest.warns(UserWarning, match="Quixote"):
        speak()
    assert "Quixote" in caplog.text
    caplog.clear()
    with quiet_pydicom(), warnings.catch_warnings(record=True) as seen:
        speak()
    assert not seen and "Quixote" not in caplog.text


def test_threads_that_leave_in_any_order_leave_the_log_as_it_was():
    logger = logging.getLogger("pydicom")
    assert not logger.disabled
    filters = list(warnings.filters)
    inside, leave = threading.Event(), threading.Event()

    def first():
        with quiet_pydicom():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=first)
    thread.start()
    inside.wait(10)
    with quiet_pydicom():
        leave.set()
        thread.join()
        assert logger.disabled
    assert not logger.disabled and list(warnings.filters) == filters
