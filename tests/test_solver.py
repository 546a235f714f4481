"""The solver against brute force, its answers where limits cannot be met, and its speed at a large size."""

import itertools
import os
import time
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvm_mpq.search.front import sweep, undominated
from tvm_mpq.search.problem import Boundary, Problem
from tvm_mpq.search.program import build_program
from tvm_mpq.search.silence import silent_stdout
from tvm_mpq.search.solver import CHANGES, near, solve

METRICS = ("loss", "latency", "storage")


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    n, p = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    # Small integers tie often, which random floats never do.
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    whole = draw(st.booleans())

    def values(*shape: int) -> np.ndarray:
        drawn = random.integers(-3, 4, shape).astype(float)
        return drawn if whole else drawn + random.normal(size=shape)

    allowed = random.random((n, p)) < 0.8
    allowed[np.arange(n), random.integers(0, p, n)] = True
    costs = {metric: np.where(allowed, values(n, p), np.nan) for metric in METRICS}
    edges = []
    for _ in range(draw(st.integers(0, 4)) if n > 1 else 0):
        source, target = random.permutation(n)[:2].tolist()
        # Rows and columns that repeat, as with choices that behave alike.
        groups = random.integers(0, 2, p)
        table = values(2, 2)[np.ix_(groups, groups)] if draw(st.booleans()) else values(p, p)
        edges.append(Boundary(source, target, {draw(st.sampled_from(METRICS)): table}))
    return Problem(costs, allowed, edges)


def every_total(problem: Problem) -> dict[tuple[int, ...], dict[str, float]]:
    rows = [np.flatnonzero(row).tolist() for row in problem.allowed]
    return {choice: problem.totals(np.array(choice)) for choice in itertools.product(*rows)}


def meets(totals: Mapping[str, float], limits: Mapping[str, float], slack: float = 1e-6) -> bool:
    return all(totals[metric] <= value + slack for metric, value in limits.items())


@settings(deadline=None, max_examples=150)
@given(problems(), st.integers(0, 2**32))
def test_solutions_equal_brute_force(problem: Problem, seed: int) -> None:
    random = np.random.default_rng(seed)
    totals = every_total(problem)
    names = random.permutation(METRICS)
    # Limits exactly at what some choices cost, or somewhere between.
    candidates = list(totals.values())
    limits = {}
    for metric in names[1:]:
        at = candidates[random.integers(len(candidates))][metric]
        limits[str(metric)] = float(at + random.choice([0.0, 0.1, -0.5]))
    objective = str(names[0])
    solution = solve(problem, objective, limits)
    assert solution.totals == totals[tuple(solution.choices.tolist())]
    possible = [value[objective] for value in candidates if meets(value, limits)]
    if possible:
        assert solution.feasible
        assert meets(solution.totals, limits)
        assert solution.totals[objective] == pytest.approx(min(possible), abs=1e-4)
        return
    assert not any(meets(value, {m: limits[m] for m in solution.binding}) for value in candidates), (
        "the limits named as binding can be met"
    )
    for left_out in solution.binding:
        rest = {m: limits[m] for m in solution.binding if m != left_out}
        assert any(meets(value, rest) for value in candidates), f"{left_out} is not to blame"

    def excess(value: Mapping[str, float]) -> float:
        return sum(max(value[m] - limit, 0.0) / (problem.span(m) or 1.0) for m, limit in limits.items())

    assert excess(solution.totals) == pytest.approx(min(map(excess, candidates)), abs=1e-5)


@settings(deadline=None, max_examples=50)
@given(problems(), st.integers(0, 3), st.integers(0, 2**32))
def test_a_trust_region_is_a_limit_on_changes(problem: Problem, most: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    current = np.array([random.choice(np.flatnonzero(row)) for row in problem.allowed])
    solution = solve(near(problem, current), "loss", {CHANGES: most})
    assert int((solution.choices != current).sum()) == solution.totals[CHANGES] <= most
    reachable = [
        value["loss"]
        for choice, value in every_total(problem).items()
        if sum(a != b for a, b in zip(choice, current, strict=True)) <= most
    ]
    assert solution.totals["loss"] == pytest.approx(min(reachable), abs=1e-4)


def test_the_nearest_plan_still_minimises_among_equals() -> None:
    problem = Problem(
        {"loss": np.array([[5.0, 1.0, 3.0]]), "storage": np.array([[2.0, 2.0, 9.0]])}, np.ones((1, 3), bool)
    )
    solution = solve(problem, "loss", {"storage": 1.0})
    assert solution.binding == ("storage",)
    assert solution.choices.tolist() == [1]


def test_choices_that_behave_alike_on_an_edge_share_variables() -> None:
    kinds = np.arange(12) < 2
    table = (kinds[:, None] != kinds[None]).astype(float)
    costs = {"latency": np.arange(24.0).reshape(2, 12), "loss": -np.arange(24.0).reshape(2, 12)}
    problem = Problem(costs, np.ones((2, 12), bool), [Boundary(0, 1, {"latency": table})])
    assert build_program(problem, ["latency", "loss"]).variables == 2 * 12 + 2 * 2


def chain(operators: int, choices: int) -> Problem:
    """A chain with residual edges: four floats and integers whose loss and size trade off, edges float to 8 bits."""
    random = np.random.default_rng(0)
    bits = np.concatenate([[32.0, 16.0], np.linspace(8.0, 2.0, choices - 2)])
    size = random.lognormal(9.0, 1.2, operators)
    noise = random.lognormal(-11.0, 1.5, (operators, 1)) * 4.0 ** (8.0 - np.minimum(bits, 8.0))
    signed = random.normal(0.0, 1e-3, (operators, choices)) * (bits < 16.0)
    floats = np.arange(choices) < 2
    speed = np.where(floats, 3.0, 1.0) * random.uniform(0.8, 1.2, (operators, choices))
    crossing = (floats[:, None] != floats[None]).astype(float)
    pairs = [(i, i + 1) for i in range(operators - 1)] + [(i, i + 3) for i in range(0, operators - 3, 2)]
    edges = [Boundary(a, b, {"latency": crossing * size[a]}) for a, b in pairs]
    costs = {"loss": signed + noise, "latency": size[:, None] * speed, "storage": size[:, None] * bits / 8.0}
    return Problem(costs, np.ones((operators, choices), bool), edges)


def test_500_operators_with_12_choices_take_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    problem = chain(500, 12)
    eight = problem.totals(np.full(500, 2))
    limits = {"storage": 0.7 * eight["storage"], "latency": eight["latency"]}
    start = time.perf_counter()
    solution = solve(problem, "loss", limits)
    seconds = time.perf_counter() - start
    with capsys.disabled():
        print(f"\n500 operators x 12 choices, 2 limits: {seconds:.1f} s, proven gap {solution.gap:.1e}")
    assert solution.feasible
    assert meets(solution.totals, limits)
    assert solution.gap <= 1e-6
    assert solution.totals["loss"] < eight["loss"]
    assert seconds < 60.0


def test_equal_problems_have_equal_solutions() -> None:
    problem = chain(60, 8)
    limits = {"storage": 0.6 * problem.totals(np.full(60, 2))["storage"]}
    first, second = (solve(problem, "loss", limits) for _ in range(2))
    assert first.choices.tolist() == second.choices.tolist()


def test_a_sweep_is_a_front() -> None:
    problem = chain(40, 8)
    high = problem.totals(np.full(40, 2))["storage"]
    front = sweep(problem, "loss", "storage", [share * high for share in (0.1, 0.4, 0.6, 0.6, 0.8, 1.0)])
    points = [(s.totals["loss"], s.totals["storage"]) for s in front]
    # A tenth cannot be had, and 0.6 was asked for twice.
    assert len(points) == 4
    assert points == sorted(points, reverse=True)
    for (_, total), share in zip(points, (0.4, 0.6, 0.8, 1.0), strict=True):
        assert total <= share * high * (1 + 1e-9)


def test_of_equal_points_the_first_stays() -> None:
    points = np.array([[1.0, 2.0], [2.0, 1.0], [1.0, 2.0], [2.0, 2.0], [3.0, 0.0]])
    assert undominated(points) == [0, 1, 4]


def test_silence_ends(capfd: pytest.CaptureFixture[str]) -> None:
    with silent_stdout():
        os.write(1, b"lost")
    os.write(1, b"kept")
    assert capfd.readouterr().out == "kept"


def test_arrays_that_do_not_fit_are_refused() -> None:
    allowed = np.ones((2, 3), bool)
    good = {"loss": np.zeros((2, 3))}
    with pytest.raises(ValueError, match="loss has shape"):
        Problem({"loss": np.zeros((2, 2))}, allowed)
    with pytest.raises(ValueError, match="operator 1 has no allowed choice"):
        Problem(good, allowed & np.array([[True], [False]]))
    with pytest.raises(ValueError, match="not finite"):
        Problem({"loss": np.full((2, 3), np.nan)}, allowed)
    with pytest.raises(ValueError, match="boundary with itself"):
        Problem(good, allowed, [Boundary(0, 0, {})])
    with pytest.raises(ValueError, match="joins operators 0 and 2 of 2"):
        Problem(good, allowed, [Boundary(0, 2, {})])
    with pytest.raises(ValueError, match="'latency', which operators do not"):
        Problem(good, allowed, [Boundary(0, 1, {"latency": np.zeros((3, 3))})])
    with pytest.raises(ValueError, match="no metric 'latency'"):
        solve(Problem(good, allowed), "latency", {})
    with pytest.raises(ValueError, match="NaN"):
        solve(Problem(good, allowed), "loss", {"loss": float("nan")})
