"""A check that the tests of device functions share."""

import pytest

from tilewright import TranslationError, mask_mod, score_mod


def refused(kind, function, *needed):
    with pytest.raises(TranslationError) as caught:
        {"score_mod": score_mod, "mask_mod": mask_mod}[kind](function)
    # The line that is shown below may be the test's own, with the needed text in it.
    message = str(caught.value).partition('\n  File "')[0]
    for text in needed:
        assert text in message, str(caught.value)
    return caught.value
