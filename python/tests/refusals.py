"""A check that the tests of device functions share."""

import pytest

from tilewright import TranslationError, mask_mod, score_mod


def refused(kind, function, *needed):
    with pytest.raises(TranslationError) as caught:
        {"score_mod": score_mod, "mask_mod": mask_mod}[kind](function)
    for text in needed:
        assert text in str(caught.value), str(caught.value)
    return caught.value
