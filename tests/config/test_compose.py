"""What a person is told of an error, whoever raised it."""

import errno
import os

import pytest

from instruct_lit.config.compose import _one_message
from instruct_lit.errors import DataError


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (DataError("records.json: empty"), "error: records.json: empty\n"),
        (OSError(errno.ENOSPC, "No space left on device"), "error: paths.outputs: No space left on device; what was written before is intact\n"),
        (PermissionError(errno.EACCES, "Permission denied", "/out/x"), "error: /out/x: Permission denied; choose another folder (paths.outputs=…, paths.cache=…)\n"),
    ],
)  # fmt: skip
def test_what_a_person_can_mend_is_one_message_and_status_2(
    error: Exception, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended, _one_message("train"):
        raise error
    assert ended.value.code == 2 and capsys.readouterr().err == message


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)), _one_message("train"):
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))


def test_ctrl_c_ends_with_the_status_of_shells() -> None:
    with pytest.raises(SystemExit) as ended, _one_message("train"):
        raise KeyboardInterrupt
    assert ended.value.code == 130
