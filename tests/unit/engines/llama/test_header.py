"""Headers of GGUF files, honest and hostile."""

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.engines.llama.gguf_files import gguf, write

from llmhost.core.errors import ModelUnavailable
from llmhost.engines.llama.header import BLOCKS, parts_of, read_header

METADATA = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.rope.freq_base": 10000.0,
    "tokenizer.ggml.add_bos_token": True,
    "tokenizer.ggml.tokens": ["a", "Ġb", "é"],
    "tokenizer.ggml.token_type": [1, 3, 4],
    "tokenizer.ggml.scores": [0.0, -1.5, 2.0],
}
TENSORS = [
    ("token_embd.weight", (64, 3), 0, bytes(64 * 3 * 4)),
    ("output.weight", (64, 3), 8, bytes(6 * 34)),
]
WHOLE = gguf(METADATA, TENSORS)

keys = st.text(st.characters(codec="utf-8"), max_size=12).map("k.".__add__)
values = st.one_of(
    st.booleans(),
    st.integers(0, 2**32 - 1),
    st.floats(width=32, allow_nan=False),
    st.text(st.characters(codec="utf-8"), max_size=20),
    st.lists(st.text(st.characters(codec="utf-8"), max_size=5), min_size=1, max_size=5),
    st.lists(st.integers(-(2**31), 2**31 - 1), max_size=5),
)


def refusal(path: Path) -> str:
    with pytest.raises(ModelUnavailable) as refused:
        read_header(path)
    return refused.value.message


def test_metadata_and_tensors_are_read(tmp_path: Path) -> None:
    header = read_header(write(tmp_path / "m.gguf", METADATA, TENSORS))

    assert header.metadata["general.architecture"] == "llama"
    assert header.metadata["llama.rope.freq_base"] == 10000.0
    assert header.metadata["tokenizer.ggml.add_bos_token"] is True
    assert header.metadata["tokenizer.ggml.tokens"] == ["a", "Ġb", "é"]
    assert header.metadata["tokenizer.ggml.scores"].tolist() == [0.0, -1.5, 2.0]
    assert [(t.name, t.kind, t.shape) for t in header.tensors] == [
        ("token_embd.weight", "F32", (64, 3)),
        ("output.weight", "Q8_0", (64, 3)),
    ]
    assert header.weights_bytes == 64 * 3 * 4 + 6 * 34


@given(metadata=st.dictionaries(keys, values, max_size=6))
def test_whatever_was_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, metadata: dict[str, object]
) -> None:
    path = tmp_path_factory.getbasetemp() / "written.gguf"
    path.write_bytes(gguf(metadata))

    found = read_header(path).metadata

    assert {
        key: value.tolist() if isinstance(value, np.ndarray) else value
        for key, value in found.items()
    } == metadata


@given(cut=st.integers(0, len(WHOLE) - 1))
def test_a_file_cut_anywhere_is_refused_in_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "cut.gguf"
    path.write_bytes(WHOLE[:cut])

    assert refusal(path).startswith(str(path))


@given(
    changes=st.lists(
        st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=8
    )
)
def test_changed_bytes_are_read_or_refused_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]
) -> None:
    content = bytearray(WHOLE)
    for at, byte in changes:
        content[at] = byte
    path = tmp_path_factory.getbasetemp() / "changed.gguf"
    path.write_bytes(content)

    try:
        header = read_header(path)
    except ModelUnavailable:
        return
    assert all(t.offset + t.size_bytes <= len(content) for t in header.tensors)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"PK\3\4" + bytes(40), "does not begin as a GGUF file does"),
        (gguf(version=1), "has version 1"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(64), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), "claims 1152921504606846976 tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63), "values in its metadata"),
        (gguf({"a": (9, struct.pack("<IQ", 8, 2**61))}), "strings in a list"),
        (gguf({"a": (9, struct.pack("<IQ", 9, 1) + bytes(32))}), "has a value of type 9"),
        (gguf({"a": (77, bytes(8))}), "has a value of type 77"),
        (gguf({"general.alignment": 3}), "the alignment 3"),
        (gguf({}, [("t", (33,), 8, bytes(34))]), "impossible shape"),
        (gguf({}, [("t", (1,), 99, bytes(4))]), "type 99"),
        (gguf({}, [("t", (1, 1, 1, 1, 1), 0, bytes(4))]), "5 dimensions"),
        (gguf({}, [("t", (2**40,), 0, bytes(4))]), "ends before its tensor 't' does"),
        (gguf({}, [("t", (1,), 0, bytes(4))] * 2), "lists a tensor twice"),
    ],
)
def test_what_a_hostile_file_claims_is_not_believed(
    tmp_path: Path, content: bytes, said: str
) -> None:
    path = tmp_path / "hostile.gguf"
    path.write_bytes(content)

    assert said in refusal(path)


def test_a_model_in_parts_is_read_from_any_of_them(tmp_path: Path) -> None:
    first = write(tmp_path / "m-00001-of-00002.gguf", {"split.count": 2, "a": 1}, TENSORS[:1])
    second = write(tmp_path / "m-00002-of-00002.gguf", {"split.count": 2}, TENSORS[1:])

    header = read_header(second)

    assert header.path == first
    assert header.metadata["a"] == 1
    assert [tensor.name for tensor in header.tensors] == ["token_embd.weight", "output.weight"]


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    first = write(tmp_path / "m-00001-of-00003.gguf", {"split.count": 3})

    assert "m-00002-of-00003.gguf is not beside it" in refusal(first)


def test_a_part_under_a_name_of_its_own_is_refused(tmp_path: Path) -> None:
    assert "one of 4 parts" in refusal(write(tmp_path / "m.gguf", {"split.count": 4}))


def test_a_name_may_not_claim_thousands_of_parts(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="1 to 1000"):
        parts_of(tmp_path / "m-00001-of-99999.gguf")


def test_the_sizes_of_all_types_are_those_of_the_formats_own_package() -> None:
    package = pytest.importorskip("gguf")

    known = {int(kind): (kind.name, *sizes) for kind, sizes in package.GGML_QUANT_SIZES.items()}

    assert known == BLOCKS
