"""What Python functions capture: which values are one capture, how they are read, and what they cost."""

from __future__ import annotations

import math
import os
import pickle
import subprocess
import sys
import textwrap
import types

import pytest

import tilewright
from refusals import refused
from test_functions import check
from tilewright import mask_mod, score_mod

torch = pytest.importorskip("torch", reason="PyTorch is not installed: tensors are captured")
np = pytest.importorskip("numpy", reason="numpy is not installed")


# Whatever two captures differ in, they are two: each is read where the other's value would be another one.


def test_results_that_differ_in_a_keyword():
    lens, low = torch.tensor([7, 40]), 10
    made = check("score_mod", lambda s, b, h, q, kv: s + lens.clamp(min=low)[b] * 100 + lens.clamp(max=low)[b], tensors=True)
    assert sorted(made.captures.values()) == [(7, 10), (10, 40)]


def test_results_whose_text_is_the_same():
    # More than 1,000 elements, whose middle is left out when they are printed.
    ids = torch.repeat_interleave(torch.arange(4), 1000)
    differ = [
        lambda s, b, h, q, kv: s + ids.eq(1)[kv + 1000] * 10.0 + ids.eq(2)[kv + 1000],
        lambda s, b, h, q, kv: s + ids.roll(100)[kv + 1050] * 10.0 + ids.roll(200)[kv + 1050],
        lambda s, b, h, q, kv: s + torch.arange(3000)[kv] * 10.0 + torch.arange(3001).roll(1)[kv],
    ]
    for function in differ:
        assert len(check("score_mod", function, tensors=True).captures) == 2


def test_results_that_differ_each_time():
    class Counter:
        def __init__(self):
            self.number = 0.0

        @property
        def next(self):
            self.number += 1
            return self.number

    counter = Counter()
    made = score_mod(lambda s, b, h, q, kv: s + counter.next * 10 + counter.next)
    assert made.run(0.0, 0, 0, 0, 0) == 12.0


def test_zero_is_not_minus_zero():
    signs = {"plus": 0.0, "minus": -0.0}
    made = score_mod(lambda s, b, h, q, kv: 1 / (s * 0 + signs["plus"]) if q else 1 / (-abs(s) * 0 + signs["minus"]))
    assert made.run(1.0, 0, 0, 1, 0) == float("inf") and made.run(1.0, 0, 0, 0, 0) == float("-inf")


def test_one_value_is_one_capture():
    ids, scale = torch.arange(70) // 9, 0.5
    made = check("mask_mod", lambda b, h, q, kv: (ids[q] == ids[kv]) & ((ids == 1)[q] == (ids == 1)[kv]), tensors=True)
    assert len(made.captures) == 2
    assert len(score_mod(lambda s, b, h, q, kv: s * scale + q * (8.0 / scale) + kv * scale + h * (8.0 / scale)).captures) == 2


def test_comparisons_of_captured_tensors():
    ids, allowed = torch.tensor([0, 0, 1, 1, 2, 2] * 12), torch.arange(72) % 5 != 0
    check("mask_mod", lambda b, h, q, kv: (ids == 1)[kv] | (ids[q] != ids[kv]) & (ids >= 1)[q], tensors=True)
    check("mask_mod", lambda b, h, q, kv: (allowed & (ids < 2))[kv] | (~allowed)[q] | (1 < ids)[kv], tensors=True)
    ids = ids.numpy()
    check("mask_mod", lambda b, h, q, kv: (ids == 1)[kv] or (ids[q] > 1) == (ids > 1)[kv], tensors=True)


# How they are read


def test_views_that_are_negated_or_conjugated_when_they_are_read():
    spectrum = torch.complex(torch.arange(70.0), torch.arange(70.0) * 3)
    lazy = spectrum.conj().imag
    assert lazy.is_neg()
    check("score_mod", lambda s, b, h, q, kv: s + lazy[q], tensors=True)
    one = lazy[5]
    check("score_mod", lambda s, b, h, q, kv: s + one, tensors=True)
    rows = torch.complex(torch.arange(8.0), -torch.arange(8.0)).reshape(2, 4).conj().imag
    check("score_mod", lambda s, b, h, q, kv: s + rows[b, h] + rows.T[h, b], tensors=True)
    angles = torch.view_as_real(spectrum.conj().resolve_conj())
    check("score_mod", lambda s, b, h, q, kv: s + angles[q, 1] - angles[kv][0], tensors=True)


def test_every_dtype_and_layout():
    whole = torch.arange(80).reshape(4, 20)
    for dtype in (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64):
        table = whole.to(dtype)
        check("score_mod", lambda s, b, h, q, kv, table=table: s + table[h, kv % 20], tensors=True)
        check("score_mod", lambda s, b, h, q, kv, table=table.mT.contiguous().mT: s + table[h][kv % 20], tensors=True)
    for dtype in ("i1", "u2", ">i4", "i8", "u8", "f2", ">f4", "f8", "?"):
        table = whole.numpy().astype(dtype)
        check("score_mod", lambda s, b, h, q, kv, table=table[:, ::-1]: s + float(table[h, kv % 20]), tensors=True)
    parameter = torch.nn.Parameter(torch.randn(4))
    assert score_mod(lambda s, b, h, q, kv: s * parameter[h]).run(1.0, 0, 2, 0, 0) == parameter[2].item()


def test_infinities_and_the_largest_numbers():
    for numbers in ([math.inf, -math.inf, 3.4028234e38, 0.0] * 18, [math.nan, 1e-300, -3.4028234e38, 1.0] * 18):
        for table in (numbers, np.array(numbers), np.array(numbers, dtype=np.float32), torch.tensor(numbers), torch.tensor(numbers, dtype=torch.float64)):
            made = score_mod(lambda s, b, h, q, kv: table[q])
            for q in range(4):
                found = made.run(0.0, 0, 0, q, 0)
                assert math.isclose(found, numbers[q], rel_tol=1e-6, abs_tol=1e-30) or math.isnan(found) and math.isnan(numbers[q])


def test_numbers_of_numpy():
    size, scale, on, sizes = np.int64(9), np.float32(0.5), np.bool_(True), [np.int64(3), np.int32(5)]
    check("score_mod", lambda s, b, h, q, kv: s * scale + size * h + sizes[b] + s**sizes[0] if on and q < size else s, tensors=False)
    check("mask_mod", lambda b, h, q, kv: q in sizes or kv in range(size) or h in np.arange(2).tolist(), tensors=True)


def test_small_integers_are_not_computed_with():
    """Their arithmetic wraps in torch, and does not in i32."""
    ids = torch.tensor([200, 100, 7, 9] * 18, dtype=torch.uint8)
    check("mask_mod", lambda b, h, q, kv: (ids[q] == ids[kv]) | (ids[q] > 50) & (ids[kv] & 3 == 3), tensors=True)
    check("score_mod", lambda s, b, h, q, kv: s - ids[q] + (ids[q].int() - ids[kv].int()) + (q - ids[q]) + ids[q] / 2, tensors=True)
    for function in (
        lambda s, b, h, q, kv: s + (ids[q] - ids[kv]),
        lambda s, b, h, q, kv: s + ids[q] * 2,
        lambda s, b, h, q, kv: s + torch.where(q > kv, ids[q], ids[kv]) ** 2,
        lambda s, b, h, q, kv: s + (-ids[q]),
    ):
        refused("score_mod", function, "the arithmetic of uint8 wraps: convert it first, with `.int()` for example")


class Raising:
    """An object whose attributes, comparisons and conversions raise what they like."""

    __hash__ = None  # type: ignore[assignment]

    @property
    def slope(self):
        raise KeyError("no slope")

    def __getattr__(self, name):
        raise ZeroDivisionError(name)

    def __eq__(self, other):
        raise KeyError("eq")

    def __bool__(self):
        raise KeyError("bool")

    def __repr__(self):
        raise KeyError("repr")


class Endless(list):
    def __len__(self):
        raise KeyError("len")


odd, endless, names = Raising(), Endless([1]), np.array(["a", "b"])
records, dates, objects = np.zeros(3, dtype=[("x", int)]), np.array(["2020-01-01"], dtype="datetime64[s]"), np.array([1, None], dtype=object)
masked, sparse, imaginary = np.ma.masked_array([1, 2], [0, 1]), torch.eye(3).to_sparse(), torch.ones(3, dtype=torch.complex64)
imaginary_number, huge = torch.tensor(1j), 10**5000
far, far_torch, far_list, far_integers = np.array([1e300]), torch.tensor([-1e39], dtype=torch.float64), [0.5, 1e39], [0.5, 10**400]
beyond, beyond_torch = np.array([2**63], dtype=np.uint64), torch.tensor([2**64 - 1], dtype=torch.uint64)


def missing_module(b, h, q, kv):
    import torch.nowhere

    return q > kv


def missing_name(b, h, q, kv):
    from torch import nowhere  # noqa: F401

    return q > kv


BAD = [
    ("score_mod", lambda s, b, h, q, kv: s + odd.slope, "`.slope` cannot be read, Python says KeyError: 'no slope'"),
    ("score_mod", lambda s, b, h, q, kv: s + odd.other, "Python says ZeroDivisionError: other"),
    ("score_mod", lambda s, b, h, q, kv: s + odd, "`odd` is a Raising: captured are ints, floats, bools"),
    ("score_mod", lambda s, b, h, q, kv: odd(s), "Python says ZeroDivisionError"),
    ("score_mod", lambda s, b, h, q, kv: s if odd else 0.0, "`odd` is a Raising: a condition is"),
    ("mask_mod", lambda b, h, q, kv: odd == 1, "Python says KeyError: 'eq'"),
    ("mask_mod", lambda b, h, q, kv: q in endless, "Python says KeyError: 'len'"),
    ("mask_mod", odd, "is a Python function, found Raising"),
    ("score_mod", lambda s, b, h, q, kv: s + names[q], "`names` has the dtype <U1: make it one of integers, floats or bools"),
    ("score_mod", lambda s, b, h, q, kv: s + records[q], "`records` has the dtype [('x', '<i8')]"),
    ("score_mod", lambda s, b, h, q, kv: s + dates[q], "`dates` has the dtype datetime64[s]"),
    ("score_mod", lambda s, b, h, q, kv: s + objects[q], "`objects` has the dtype object"),
    ("score_mod", lambda s, b, h, q, kv: s + imaginary[q], "`imaginary` has the dtype torch.complex64"),
    ("score_mod", lambda s, b, h, q, kv: s + imaginary_number, "`imaginary_number` has the dtype torch.complex64"),
    ("score_mod", lambda s, b, h, q, kv: s + masked[q], "a masked array, whose mask would be lost: fill it with `masked.filled(…)`"),
    ("score_mod", lambda s, b, h, q, kv: s + sparse[q, kv], "`sparse` cannot be read, RuntimeError"),
    ("score_mod", lambda s, b, h, q, kv: s + beyond[q], "`beyond` holds integers that do not fit an i32"),
    ("score_mod", lambda s, b, h, q, kv: s + beyond_torch[q], "`beyond_torch` holds integers that do not fit an i32"),
    *(
        ("score_mod", lambda s, b, h, q, kv, far=table: s + far[q], "`far` holds numbers that do not fit an f32, whose largest is 3.4028235e38: clamp")
        for table in (far, far_torch, far_list, far_integers, tuple(far_list), far.astype(np.longdouble))
    ),
    ("score_mod", lambda s, b, h, q, kv: s + huge, "an integer of 16610 bits does not fit an i32"),
    ("mask_mod", lambda b, h, q, kv: q == 10**5000, "an integer of 16610 bits does not fit an i32: write it as a float"),
    ("score_mod", lambda s, b, h, q, kv: s.dtype[q], "`dtype` is a dtype: only tensors, numpy arrays and lists can be indexed"),
    ("mask_mod", missing_module, "it cannot be imported, Python says ModuleNotFoundError"),
    ("mask_mod", missing_name, "it cannot be imported, Python says ImportError: cannot import name 'nowhere'"),
]


@pytest.mark.parametrize("at", range(len(BAD)))
def test_objects_that_raise_or_cannot_be_read(at):
    kind, function, needed = BAD[at]
    refused(kind, function, needed)


@pytest.mark.parametrize("stub", [types.ModuleType("torch"), None], ids=["a stub", "none"])
def test_without_a_whole_torch(monkeypatch, stub):
    """A stand-in for the module, as test suites and documentation builders put there."""
    monkeypatch.setitem(sys.modules, "torch", stub)
    ids = np.arange(9)
    assert mask_mod(lambda b, h, q, kv: np.minimum(ids[q], 3) == ids[kv]).run(0, 0, 5, 3) is True


# Pickles


@tilewright.mask_mod
def decorated(b, h, q, kv, size=7):
    return q - kv < size


class Masks:
    @staticmethod
    @tilewright.mask_mod
    def inside(b, h, q, kv):
        return q == kv


def test_decorated_functions_are_pickled_by_their_name():
    assert pickle.loads(pickle.dumps(decorated)) is decorated
    wide = decorated.bind(size=20)
    again = pickle.loads(pickle.dumps(wide))
    assert again == wide and again.captures == {"size": 20}
    assert pickle.loads(pickle.dumps(Masks.inside)) is Masks.inside
    local = mask_mod(lambda b, h, q, kv: q > kv)
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pickle.dumps(local)


def test_a_decorated_function_crosses_processes(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent("""
        import multiprocessing, tilewright

        @tilewright.mask_mod
        def causal(b, h, q, kv):
            return q >= kv

        def kept(function):
            return function.run(0, 0, 2, 1), function is causal

        if __name__ == "__main__":
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                print(pool.map(kept, [causal]))
    """))
    run = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert run.stdout == "[(True, True)]\n", run.stderr


# What they cost


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="the system does not tell the peak of a process's memory")
def test_a_table_is_copied_once(tmp_path):
    """The peak of a process grows by the table as f32. What the pieces take has been taken by a smaller table before."""
    # Not `ru_maxrss`, which begins with the peak of the process that started this one.
    code = """
        import sys, torch, tilewright
        torch.set_num_threads(1)

        def peak():
            with open("/proc/self/status") as status:
                return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))

        whole = torch.ones(48, 1024, 1024, dtype=getattr(torch, sys.argv[1]))
        part = whole[:12]
        smaller = tilewright.score_mod(lambda s, b, h, q, kv: s + part[h, q, kv])
        before = peak()
        made = tilewright.score_mod(lambda s, b, h, q, kv: s + whole[h, q, kv])
        assert made.run(1.0, 0, 47, 1023, 1023) == 2.0
        print(peak() - before, repr(made))
    """
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(code))
    for dtype in ("bfloat16", "bool"):
        run = subprocess.run([sys.executable, script, dtype], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        grown, shown = run.stdout.split(maxsplit=1)
        copies = int(grown) / (48 * 2**20 * 4)
        assert 0.95 < copies < 1.05, f"{dtype}: {copies} copies"
        assert "whole=(50331648 values)" in shown
