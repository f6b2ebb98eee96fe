"""What a score or mask function may not contain: the message names it, shows the line and says what to write instead."""

import math

import pytest

import tilewright
from refusals import refused
from tilewright import mask_mod, score_mod
from tilewright.translate.values import Names

try:
    import torch
except ImportError:
    torch = None

needs_torch = pytest.mark.skipif(torch is None, reason="torch is not installed")


def test_errors_show_the_line():
    def late(score, b, h, q, kv):
        distance = q - kv
        return score + distance.cumsum(0)

    error = refused("score_mod", late, "`late` cannot be translated for the GPU", "`.cumsum()`", "it may call abs, min, max")
    assert isinstance(error, tilewright.Error)
    assert error.filename == __file__ and error.text.strip() == "return score + distance.cumsum(0)"
    assert error.lineno == late.__code__.co_firstlineno + 2 and error.text[error.offset - 1 :].startswith("distance.cumsum(0)")
    shown = str(error).splitlines()
    assert shown[-3] == f'  File "{__file__}", line {error.lineno}'
    assert shown[-2:] == ["    return score + distance.cumsum(0)", "                   ^^^^^^^^^^^^^^^^^^"]


def test_errors_in_called_functions_show_that_function():
    def inner(x):
        return x @ x

    error = refused("score_mod", lambda s, b, h, q, kv: inner(s) + 1, "→ inner", "this operator is not supported")
    assert error.text.strip() == "return x @ x"


def cases():
    huge, text, matrix = 2**40, "text", [[1, 2], [3, 4]]
    values = [1.0, 2.0]

    def while_loop(score, b, h, q, kv):
        while q > 0:
            q -= 1
        return score

    def dynamic_loop(score, b, h, q, kv):
        for i in range(q):
            score += i
        return score

    def missing_return(score, b, h, q, kv):
        if q > kv:
            return score

    def one_sided(score, b, h, q, kv):
        if q > kv:
            bias = 1.0
        return score + bias

    def inside(score, b, h, q, kv):
        def f(x):
            return x

        return f(score)

    def recursive(score, b, h, q, kv):
        return recursive(score, b, h, q, kv)

    def side_effect(score, b, h, q, kv):
        values[0] = score
        return score

    def raises(score, b, h, q, kv):
        if q > kv:
            raise ValueError
        return score

    def statement(score, b, h, q, kv):
        score + 1
        return score

    class Thing:
        pass

    thing = Thing()

    return [
        ("while", "score_mod", while_loop, "`while` loops are not supported: compute the value in closed form"),
        ("dynamic_loop", "score_mod", dynamic_loop, "`range` cannot be called"),
        ("missing_return", "score_mod", missing_return, "without a `return` on some path"),
        ("one_sided", "score_mod", one_sided, "`bias` is assigned on one side of an `if` only"),
        ("inside", "score_mod", inside, "functions inside are not supported: define it outside"),
        ("recursive", "score_mod", recursive, "does `recursive` call itself?"),
        ("side_effect", "score_mod", side_effect, "only variables can be assigned to"),
        ("raise", "score_mod", raises, "`raise` is not supported"),
        ("statement", "score_mod", statement, "this statement has no effect"),
        ("comprehension", "score_mod", lambda s, b, h, q, kv: sum([s for _ in range(3)]), "comprehensions are not supported"),
        ("walrus", "score_mod", lambda s, b, h, q, kv: (x := s) + x, "`:=` is not supported"),
        ("print", "score_mod", lambda s, b, h, q, kv: print(s), "`print` cannot be called in a device function"),
        ("unknown_name", "score_mod", lambda s, b, h, q, kv: s + nowhere, "`nowhere` is not defined"),  # noqa: F821
        ("huge", "mask_mod", lambda b, h, q, kv: q < huge, "1099511627776 does not fit an i32"),
        ("huge_literal", "mask_mod", lambda b, h, q, kv: q < 3000000000, "3000000000 does not fit an i32"),
        ("large_float", "score_mod", lambda s, b, h, q, kv: s + 1e39, "does not fit an f32"),
        ("text", "score_mod", lambda s, b, h, q, kv: s + text, "`text` is a str: captured are ints, floats, bools"),
        ("object", "score_mod", lambda s, b, h, q, kv: s + Thing, "`Thing` is a type"),
        ("string_literal", "score_mod", lambda s, b, h, q, kv: s + "1", "'1' is no number"),
        ("nested_list", "mask_mod", lambda b, h, q, kv: matrix[q][kv] == 1, "`matrix` is a list of something else than numbers"),
        ("whole_list", "mask_mod", lambda b, h, q, kv: values == q, "`values` is a list"),
        ("float_index", "score_mod", lambda s, b, h, q, kv: values[s], "an index is an integer, found a float: use `int(…)`"),
        ("index_of_symbol", "score_mod", lambda s, b, h, q, kv: s[0], "a single number and cannot be indexed"),
        ("slice", "score_mod", lambda s, b, h, q, kv: values[q:kv], "slices by values of the GPU are not supported"),
        ("matmul", "score_mod", lambda s, b, h, q, kv: s @ s, "this operator is not supported: use + -"),
        ("shift", "mask_mod", lambda b, h, q, kv: q << 2 == kv, "shifts are not supported: multiply"),
        ("float_bits", "mask_mod", lambda b, h, q, kv: (q * 0.5) & kv == 0, "`&`, `|` and `^` take bools or integers"),
        ("added_bools", "mask_mod", lambda b, h, q, kv: (q > kv) + (q < kv), "both operands are bools"),
        ("number_and", "mask_mod", lambda b, h, q, kv: q and kv > 2, "a mask_mod returns a bool, found a number"),
        ("mask_number", "mask_mod", lambda b, h, q, kv: q - kv, "a mask_mod returns a bool, found a number"),
        ("score_bool", "score_mod", lambda s, b, h, q, kv: q >= kv, "a score_mod returns a score, found a bool"),
        ("object_condition", "score_mod", lambda s, b, h, q, kv: s if thing else 0.0, "`thing` is a Thing: a condition is a number"),
        ("score_none", "score_mod", lambda s, b, h, q, kv: None, "None is no number or bool"),
        ("exponent", "score_mod", lambda s, b, h, q, kv: s**h, "write `torch.exp2(y * torch.log2(x))`"),
        ("integer_power", "score_mod", lambda s, b, h, q, kv: s + 2**h, "write `2.0 ** x`"),
        ("too_few", "score_mod", lambda b, h, q, kv: q, "a score_mod takes (score, b, h, q, kv), found (b, h, q, kv)"),
        ("too_many", "mask_mod", lambda s, b, h, q, kv: q > kv, "a mask_mod takes (b, h, q, kv), found (s, b, h, q, kv)"),
        ("division_by_zero", "score_mod", lambda s, b, h, q, kv: s + 1 / (len(values) - 2), "Python says ZeroDivisionError"),
        ("not_a_function", "mask_mod", 3, "is a Python function, found int"),
        ("class", "mask_mod", Thing, "is a Python function, found type"),
        ("built_in", "mask_mod", max, "is a Python function, found builtin_function_or_method"),
    ]


@pytest.mark.parametrize("case", cases(), ids=lambda case: case[0])
def test_refusals(case):
    _, kind, function, message = case
    refused(kind, function, message)


@needs_torch
def test_refusals_of_torch():
    matrix, vector = torch.zeros(4, 4), torch.zeros(4)
    refused("score_mod", lambda s, b, h, q, kv: s + matrix[q], "`matrix` has 2 dimensions, 1 indexed: index all")
    refused("score_mod", lambda s, b, h, q, kv: s + vector, "`vector` is a tensor of shape (4,): index it, as in `vector[q]`")
    refused("score_mod", lambda s, b, h, q, kv: s + vector[q, kv], "1 dimension(s), 2 were indexed")
    refused("score_mod", lambda s, b, h, q, kv: torch.matmul(s, s), "`torch.matmul` cannot be called")
    refused("score_mod", lambda s, b, h, q, kv: s.to(torch.bfloat16), "`bfloat16` is no type of a score or mask function")
    refused("score_mod", lambda s, b, h, q, kv: s if vector else 0.0, "this is no condition, Python says RuntimeError")
    meta = torch.zeros(4, device="meta")
    refused("score_mod", lambda s, b, h, q, kv: s + meta[q], "`meta` cannot be read")
    big = torch.tensor([2**40])
    refused("mask_mod", lambda b, h, q, kv: big[q] == 0, "integers that do not fit an i32")


def test_sizes_are_bounded():
    """Whatever Python would compute for ever, or the compiler would not end with, is refused at once."""
    long_list = list(range(20_000))

    def long_loop(score, b, h, q, kv):
        for _ in range(100_000):
            pass
        return score

    def nested_loops(score, b, h, q, kv):
        for _ in range(1000):
            for _ in range(1000):
                pass
        return score

    def growing(score, b, h, q, kv):
        x = 10
        for _ in range(60):
            x = x * x
        return score + x

    def doubling(score, b, h, q, kv):
        text, items = "a", (1, 2)
        for _ in range(40):
            text, items = text + text, items + items
        return score + len(text) + len(items)

    def many_sums(score, b, h, q, kv):
        x = 0
        for _ in range(2000):
            x = x + sum(range(100_000))
        return score + x

    for kind, function, needed in [
        ("score_mod", doubling, "at most 1048576 items are computed at translation"),
        ("score_mod", many_sums, "at most 1048576 items are computed at translation"),
        ("score_mod", lambda s, b, h, q, kv: s * math.factorial(10**7), "this integer has more than 65536 bits"),
        ("score_mod", lambda s, b, h, q, kv: s * math.comb(10**7, 10**6), "this integer has more than 65536 bits"),
        ("score_mod", lambda s, b, h, q, kv: s * math.prod(range(1, 10**6)), "this integer has more than 65536 bits"),
        ("score_mod", lambda s, b, h, q, kv: s * round(5, -(10**10)), "this integer has more than 65536 bits"),
        ("score_mod", lambda s, b, h, q, kv: s * len("%9999999999d" % 1), "texts are compared here, and none is made"),
        ("score_mod", lambda s, b, h, q, kv: s * len("a".ljust(10**12)), "cannot be called in a device function"),
        ("score_mod", long_loop, "has 100000 items: at most 20000 are walked over"),
        ("score_mod", nested_loops, "it takes more than 20000 steps"),
        ("score_mod", growing, "this integer has more than 65536 bits"),
        ("score_mod", lambda s, b, h, q, kv: s * 10**10**10, "this integer has more than 65536 bits"),
        ("score_mod", lambda s, b, h, q, kv: s * (1 << 10**10), "this integer has more than 65536 bits"),
        ("score_mod", lambda s, b, h, q, kv: s + sum(range(10**12)), "at most 1048576 items are computed at translation"),
        ("score_mod", lambda s, b, h, q, kv: s + len([0] * 10**12), "at most 1048576 items are computed at translation"),
        ("mask_mod", lambda b, h, q, kv: q in long_list, "compares with each of 20000 items, at most 256: capture a tensor of bools"),
        ("score_mod", lambda s, b, h, q, kv: max(s, *long_list), "`max` of 20001 numbers: at most 256"),
        ("score_mod", lambda s, b, h, q, kv: max(s, *range(10**12)), "at most 20000 are walked over"),
    ]:
        refused(kind, function, needed)


def test_what_is_long_but_bounded_is_translated():
    ids = [3 * i for i in range(256)]
    made = tilewright.mask_mod(lambda b, h, q, kv: q in ids and kv not in range(1_000_000, 2_000_000))
    assert [made.run(0, 0, q, 0) for q in (0, 1, 3, 765, 768)] == [True, False, True, True, False]
    assert not made.run(0, 0, 3, 1_500_000)
    largest = tilewright.score_mod(lambda s, b, h, q, kv: max(s, *range(10_000), q, *ids[:200]))
    assert largest.run(0.5, 0, 0, 20_000, 0) == 20_000.0 and largest.run(0.5, 0, 0, 0, 0) == 9999.0


def test_names_are_found_at_once():
    """A variable of a long loop has as many names as rounds."""
    names = Names()
    assert len({names.new(name) for name in ("x", "x_2") * 100_000}) == 200_000


def test_functions_without_text():
    space: dict = {}
    exec("def f(b, h, q, kv):\n    return q > kv", space)
    refused("mask_mod", space["f"], "its text is not to be found (<string>): define it in a file")


def test_deep_expressions_are_refused_in_words():
    for nested, needed in [("q" + " + (q" * 80 + ")" * 80, "nest 64 deep"), (" + ".join(["q"] * 120), "nest 100 deep"), (" + ".join(["q"] * 900), "deep")]:
        deep(nested, needed)


def deep(nested, needed):
    space: dict = {"__name__": "deep"}
    text = f"def deep(b, h, q, kv):\n    return {nested} > kv\n"
    import linecache

    linecache.cache["<deep>"] = (len(text), None, text.splitlines(True), "<deep>")
    exec(compile(text, "<deep>", "exec"), space)
    refused("mask_mod", space["deep"], needed)


BAD_ELEMENTS = [
    (("a", 0, 1, 2), TypeError, "b is 'a', of type str, needed a whole number"),
    ((0, 0, 0.5, 2), TypeError, "q is 0.5, of type float, needed a whole number"),
    ((2**40, 0, 1, 2), ValueError, "b is 1099511627776, needed an int32"),
    ((0, 0, 1, -(2**31) - 1), ValueError, "kv is -2147483649, needed an int32"),
    ((0, 1, 2), TypeError, "given 3 numbers, needed 4: b, h, q, kv"),
]


@pytest.mark.parametrize("element, error, needed", BAD_ELEMENTS)
def test_elements_that_are_none(element, error, needed):
    mask, score = mask_mod(lambda b, h, q, kv: q >= kv), score_mod(lambda s, b, h, q, kv: s * 2)
    calls = [lambda: mask.run(*element)]
    if len(element) == 4:
        calls += [lambda: score.run(0.5, *element), lambda: score.gradient(0.5, *element)]
    for call in calls:
        with pytest.raises(error) as caught:
            call()
        assert needed in str(caught.value)


def test_scores_that_are_none():
    made = score_mod(lambda s, b, h, q, kv: s * 2)
    for call in (made.run, made.gradient):
        with pytest.raises(TypeError, match="score is 'a', of type str, needed a number"):
            call("a", 0, 0, 0, 0)
        with pytest.raises(ValueError, match="score is an integer of 1329 bits"):
            call(10**400, 0, 0, 0, 0)
    with pytest.raises(TypeError, match="is a mask_mod, which has no derivative"):
        mask_mod(lambda b, h, q, kv: q >= kv).gradient(0.0, 0, 0, 0, 0)
