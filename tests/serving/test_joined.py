"""All vectors of an answer as one text: the same, byte for byte, as the vectors one by one."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from chassis import datatypes
from protos.gen.triglot.serving.v1 import serving_service_pb2 as pb
from services.serving import serving_keys
from services.serving.definitions import Column, Group, Join, View, ViewFeature
from services.serving.plans import Plan, RowEnd, compile_plan
from services.serving.rows import LOST
from services.serving.vectors import Found, Lookups
from tests.serving.conftest import Client

_WIDTH = 4
_BIGINT = datatypes.parse("bigint")
# As rows hold them: what looks like the marks between vectors, and what JSON escapes.
_FRAGMENTS = (b"1", b"null", b'"],["', b'","', b'"\\u0000\\n"', b"[1,2]", '"é"'.encode())


def plan_of(places: list[tuple[int, int]]) -> Plan:
    """A view of two groups of four columns, the key first: those columns of them, the second joined by its key."""
    columns = tuple(Column(f"c{number}", _BIGINT) for number in range(_WIDTH))
    groups = [Group("s", f"g{index}", 1, columns, ("c0",), id=index + 1, row_set=index + 1) for index in (0, 1)]
    joins = (Join(groups[0]), Join(groups[1], "r_", (("c0", "c0"),)))
    features = tuple(ViewFeature(index, f"c{number}") for index, number in places)
    view = View("s", "v", 1, joins, features, serving_keys=serving_keys.derive(joins))
    return compile_plan(view, lambda row_set: b"%d:" % row_set)


def rows(width: int) -> st.SearchStrategy[bytes]:
    parts = st.lists(st.sampled_from(_FRAGMENTS), min_size=width, max_size=width)
    return st.builds(lambda head, found: b"\n".join([head, *found]), st.sampled_from([b"", b"17"]), parts)


_places = st.lists(
    st.sampled_from([(index, number) for index in (0, 1) for number in range(_WIDTH)]), max_size=6, unique=True
)
_ends = st.tuples(st.integers(0, _WIDTH - 1), st.integers(0, _WIDTH - 1)).map(
    lambda firsts: [(index, number) for index in (0, 1) for number in range(firsts[index], _WIDTH)]
)
# Narrower: from before a column was appended. Wider: from after the plan was made.
_odd_rows = st.sampled_from([1, _WIDTH - 1, _WIDTH, _WIDTH + 1]).flatmap(rows)


@settings(max_examples=300, derandomize=True, deadline=None)
@given(data=st.data())
def test_it_is_what_the_vectors_are(data: st.DataObject) -> None:
    plan = plan_of(data.draw(_places | _ends))
    size = data.draw(st.integers(1, 4))
    row = st.none() | data.draw(st.sampled_from([rows(_WIDTH), _odd_rows]))
    one_each = {"min_size": size, "max_size": size}
    found = [data.draw(st.lists(row, **one_each)) for _ in plan.reads]
    lost = data.draw(st.sets(st.integers(0, size - 1), max_size=1)) if plan.reads else ()
    for position in lost:
        found[0][position] = LOST
    echo = [data.draw(st.lists(st.sampled_from([b"1", b'"2"', b"null"]), **one_each)) for _ in plan.reads]
    failed = data.draw(st.sets(st.integers(0, size - 1), max_size=1)) if plan.reads else ()
    passed: Any = data.draw(st.sampled_from([(), [{"c1": b"7"}] * size, [None] * size]))
    lookups = Lookups([[b"key"] * size for _ in plan.reads], echo, failed)
    vectors = Found(plan, size, lookups, found, lost, passed)
    assert vectors.joined() == b",".join(vectors.texts())


def test_rows_whose_widths_make_up_for_each_other() -> None:
    plan = plan_of([(0, 2), (0, 3), (1, 2), (1, 3)])
    assert [type(piece) for piece in plan.pieces] == [RowEnd, RowEnd]
    narrow, wide = b"\n1\n2\n3", b"\n1\n2\n3\n4\n5"
    for first, second in (([narrow, wide], [wide, narrow]), ([narrow, narrow], [wide, wide])):
        found = Found(plan, 2, Lookups([[b"k", b"k"]] * 2, [[b"1", b"1"]] * 2, ()), [first, second], (), ())
        assert found.joined() == b",".join(found.texts())
        assert found.joined().count(b",") == 7


def test_what_is_made_of_pieces() -> None:
    wholes = [(0, 1), (0, 2), (0, 3)], [(0, 0), (0, 1), (0, 2), (0, 3)], [(1, 3), (0, 0), (0, 2), (0, 3)], [(0, 0)]
    parts: tuple[list[tuple[int, int]], ...] = [(0, 1), (0, 2)], [(0, 2), (0, 1), (0, 3)], [(0, 3), (0, 2)], []
    assert [bool(plan_of(places).pieces) for places in (*wholes, *parts)] == [True] * 4 + [False] * 4


async def test_both_forms_of_an_answer(serving: Client) -> None:
    group = await serving.group("g", {"id": "bigint", "x": "string", "y": "double"}, ["id"])
    await serving.write(group, [{"id": 1, "x": "a", "y": 0.5}, {"id": 2, "x": None, "y": 1.0}])
    await serving.view("v", [{"group": "g"}], [(0, "id"), (0, "x"), (0, "y")])

    async def answer(*, joined: bool) -> pb.RenderFeatureVectorsResponse:
        request = pb.RenderFeatureVectorsRequest(
            feature_store="demo", feature_view="v", version=1, batch=True, join_vectors=joined,
            entries=b'[{"id": 2}, {"id": 3}, {"id": "x"}, {"id": 1}]',
        )  # fmt: skip
        reply: pb.RenderFeatureVectorsResponse = await serving.call("RenderFeatureVectors", request)
        return reply

    one_by_one, together = await answer(joined=False), await answer(joined=True)
    assert list(one_by_one.vectors) == [b"[2,null,1.0]", b"[3,null,null]", b"null", b'[1,"a",0.5]']
    assert together.joined == b",".join(one_by_one.vectors)
    assert (together.statuses, together.vectors, one_by_one.joined) == (one_by_one.statuses, [], b"")
