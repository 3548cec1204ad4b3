"""The table of types is one table, in code and in docs; every name leads back to a type that holds its values."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from chassis import datatypes, errors

DOCS = Path(__file__).parents[2] / "docs" / "types.md"


def documented() -> dict[str, list[str]]:
    lines = [line for line in DOCS.read_text().splitlines() if line.startswith("| `")]
    rows = [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row[1:] for row in rows}


def test_docs_show_the_scalar_types_as_they_are() -> None:
    expected = {
        name: [row.pai, str(row.arrow), row.postgres, row.feast, row.json] for name, row in datatypes.SCALARS.items()
    }
    assert {name: row for name, row in documented().items() if "<" not in name} == expected


def test_docs_show_nested_types_as_they_are() -> None:
    nested = {name: row for name, row in documented().items() if "<" in name}
    assert len(nested) == 5
    for name, (pai, arrow, postgres, feast, _) in nested.items():
        found = datatypes.parse(name)
        assert [found.hive, found.pai, str(found.arrow), found.postgres, found.feast] == [
            name,
            pai,
            arrow,
            postgres,
            feast,
        ]


@pytest.mark.parametrize(
    "name", [*datatypes.SCALARS, "array<string>", "map<int,array<double>>", "struct<A:int,b:date>"]
)
def test_arrow_leads_back(name: str) -> None:
    carried = {"decimal": "decimal(10,0)", "varchar": "string", "char": "string"}
    assert datatypes.hive_of_arrow(datatypes.arrow_type(name)) == carried.get(name, name)


@pytest.mark.parametrize("name", ["INT32", "INT64", "FLOAT", "DOUBLE", "STRING", "BOOLEAN", "TIMESTAMP"])
def test_pai_leads_back(name: str) -> None:
    assert datatypes.pai_of_hive(datatypes.hive_of_pai(name)) == name


@pytest.mark.parametrize(
    ("name", "hive"),
    [
        ("array<int32>", "array<int>"),
        ("ARRAY<ARRAY<FLOAT>>", "array<array<float>>"),
        ("MAP<STRING, DOUBLE>", "map<string,double>"),
        ("int", "string"),
        ("GEOMETRY", "string"),
    ],
)
def test_pai_names(name: str, hive: str) -> None:
    assert datatypes.hive_of_pai(name) == hive


@pytest.mark.parametrize(
    ("name", "hive"),
    [
        ("int4", "int"),
        ("character varying(20)", "string"),
        ("numeric(10,2)", "decimal(10,2)"),
        ("numeric", "decimal(38,18)"),
        ("timestamp(3) without time zone", "timestamp"),
        ("double precision[]", "array<double>"),
    ],
)
def test_postgres_names(name: str, hive: str) -> None:
    assert datatypes.hive_of_postgres(name) == hive


@pytest.mark.parametrize(
    ("written", "hive"),
    [
        (" BIGINT ", "bigint"),
        ("Decimal( 10 , 2 )", "decimal(10,2)"),
        ("decimal", "decimal(10,0)"),
        ("struct< Id : INT , x:array<string> >", "struct<Id:int,x:array<string>>"),
        ("timestamp(3)", "timestamp"),
        ("varchar(100)", "varchar(100)"),
    ],
)
def test_spelling_is_made_one(written: str, hive: str) -> None:
    assert datatypes.parse(written).hive == hive


@pytest.mark.parametrize(
    "written",
    ["", "bigin", "bigint(3)", "decimal(39,2)", "decimal(2,3)", "array<>", "array<int", "map<int>", "int>", "int int",
     "struct<>", "struct<a:int,a:int>", "array<" * 40 + "int" + ">" * 40, "timestamp(9)"],
)  # fmt: skip
def test_what_is_no_type_is_refused(written: str) -> None:
    with pytest.raises(errors.InvalidArgument) as refused:
        datatypes.parse(written)
    assert refused.value.metadata["field"] == "type"


@pytest.mark.parametrize(
    ("name", "hive"), [("INT64", "bigint"), ("STRING_LIST", "array<string>"), ("UNIX_TIMESTAMP", "timestamp")]
)
def test_feast_names(name: str, hive: str) -> None:
    assert datatypes.hive_of_feast(name) == hive


def test_unsigned_arrow_integers_have_room() -> None:
    assert datatypes.hive_of_arrow(pa.uint32()) == "bigint"
    assert datatypes.hive_of_arrow(pa.uint64()) == "decimal(20,0)"


def test_unknown_names_of_other_systems_are_refused() -> None:
    for lookup in (datatypes.hive_of_postgres, datatypes.hive_of_feast):
        with pytest.raises(errors.InvalidArgument):
            lookup("geometry")
    with pytest.raises(errors.InvalidArgument):
        datatypes.hive_of_arrow(pa.duration("s"))
