"""What is not trained: one file and one digest of it, whatever its types, and the way into another model."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

import potluck
from potluck.errors import CorruptData, ModelMismatch, UsageError
from potluck.peer import frozen
from potluck.peer.frozen import Frozen, meet
from potluck.peer.handover import Handover
from potluck.peer.place import BASE
from potluck.peer.trainer import Trainer
from potluck.store.blobs import read_blob, read_pieces
from potluck.store.contents import MemoryStore
from potluck.wire.codec import digest
from potluck.wire.records import Genesis


class Adapted(nn.Module):
    """A base of several types, in an order that is not the alphabet's, and what is trained on it."""

    def __init__(self, seed: int = 0, width: int = 5) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.second = nn.Linear(width, 3, dtype=torch.bfloat16)
        self.first = nn.Linear(width, 3)
        self.scale = nn.Parameter(torch.rand(()))
        self.empty = nn.Parameter(torch.empty(0, 3))
        self.codes = nn.Parameter(torch.randint(0, 255, (7,), dtype=torch.uint8), requires_grad=False)
        self.mask = nn.Parameter(torch.rand(3) > 0.5, requires_grad=False)
        self.last = nn.Linear(width, 3)
        self.last.weight = self.first.weight
        self.requires_grad_(False)
        self.adapter = nn.Linear(3, 3)


def file(model: nn.Module) -> bytes:
    return b"".join(bytes(piece) for piece in Frozen(model).pieces())


def test_the_file_is_one_of_safetensors_and_its_digest_is_the_models() -> None:
    model = Adapted()
    raw = file(model)
    ours = Frozen(model)
    assert (len(raw), digest(raw)) == (ours.size, ours.digest())
    read = safetensors.torch.load(raw)
    expected = {name: p for name, p in model.named_parameters() if not name.startswith("adapter")}
    assert list(expected)[4:] == ["second.weight", "second.bias", "first.weight", "first.bias", "last.bias"]
    assert read.keys() == expected.keys()
    for name, value in expected.items():
        assert read[name].dtype == value.dtype
        assert torch.equal(read[name], value)


def test_the_digest_tells_values_types_names_and_order_apart() -> None:
    def changed(index: int) -> nn.Module:
        model = Adapted()
        match index:
            case 0:
                model.first.weight.data[0, 0] += 1e-3
            case 1:
                model.second.float()
            case 2:
                model.third = model.second
                del model.second
            case 3:
                model.codes.data = model.codes.view(7, 1)
            case 4:
                model.scale.requires_grad_(True)
        return model

    digests = [Frozen(changed(index)).digest() for index in range(6)]
    assert len(set(digests)) == 6
    assert digests[5] == Frozen(Adapted()).digest()
    trained = Adapted()
    nn.init.ones_(trained.adapter.weight)
    assert Frozen(trained).digest() == digests[5]


def test_memory_in_another_order_is_the_same_base() -> None:
    model = Adapted()
    model.first.weight.data = model.first.weight.data.t().contiguous().t()
    assert not model.first.weight.is_contiguous()
    assert Frozen(model).digest() == Frozen(Adapted()).digest()
    Frozen(model).fill([file(Adapted(1))])
    assert Frozen(model).digest() == Frozen(Adapted(1)).digest()


@pytest.mark.parametrize("chunk", [1, 7, 100, 1 << 20])
def test_another_models_base_goes_in_whatever_pieces_it_comes_in(chunk: int) -> None:
    ours, theirs = Adapted(1), Adapted(0)
    kept = ours.adapter.weight.clone()
    raw = file(theirs)
    Frozen(ours).fill(raw[start : start + chunk] for start in range(0, len(raw), chunk))
    assert Frozen(ours).digest() == Frozen(theirs).digest()
    assert torch.equal(ours.adapter.weight, kept)


def test_a_file_that_ends_too_early() -> None:
    with pytest.raises(CorruptData, match="ends too early"):
        Frozen(Adapted()).fill([file(Adapted())[:-1]])


def test_it_is_kept_in_chunks_as_other_files_are() -> None:
    store, ours = MemoryStore(), Frozen(Adapted())
    blob = ours.write(store)
    assert (blob.name, bytes(read_blob(store, blob))) == (BASE, file(Adapted()))
    assert b"".join(read_pieces(store, blob)) == file(Adapted())


def test_what_safetensors_does_not_hold() -> None:
    model = nn.Linear(2, 2, dtype=torch.complex64).requires_grad_(False)
    with pytest.raises(UsageError, match=r"frozen parameter weight is of type torch\.complex64"):
        Frozen(model)


def test_nothing_is_handed_out_of_a_model_that_is_trained_whole_or_is_too_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert not Frozen(nn.Linear(2, 2)).handed_out
    assert Frozen(Adapted()).handed_out
    monkeypatch.setattr(frozen, "MAX_BYTES", 100)
    assert not Frozen(Adapted()).handed_out


def test_wrappers_change_nothing() -> None:
    plain, wrapped = Adapted(), Adapted()
    checkpointed = Adapted()
    checkpointed.first = checkpoint_wrapper(checkpointed.first)
    ours = Frozen(plain)
    for other in (torch.compile(wrapped, backend="eager"), checkpointed):
        assert (Frozen(other).header, Frozen(other).digest()) == (ours.header, ours.digest())


def test_a_copy_for_evaluations_shares_what_is_not_trained() -> None:
    model = Adapted()
    copy = Trainer(model, Handover(lambda *_: None)).copied()._model
    ours, theirs = dict(model.named_parameters()), dict(copy.named_parameters())
    shared = {name for name in ours if theirs[name].data_ptr() == ours[name].data_ptr()}
    assert shared == {name for name, p in ours.items() if not p.requires_grad}
    assert copy.last.weight is copy.first.weight


class Peers:
    """The run's files, all of them here; says what it was asked for."""

    def __init__(self, model: nn.Module) -> None:
        self.store = MemoryStore()
        self.blob = Frozen(model).write(self.store)
        self.genesis = Genesis("run", 1, "", (), 1, "0" * 64, (self.blob,), base=Frozen(model).digest())
        self.fetched: list[int | None] = []
        self.notes: list[str] = []

    async def fetch(self, blob: object, chunks: int | None = None) -> None:
        self.fetched.append(chunks)

    async def lacks(self, blob: object) -> bool:
        return not all(map(self.store.has, self.blob.chunks))

    def has(self, blob: object) -> None:
        assert blob == self.blob

    def note(self, text: str) -> None:
        self.notes.append(text)

    def meet(self, model: nn.Module, genesis: Genesis | None = None) -> None:
        asyncio.run(meet(Frozen(model), genesis or self.genesis, self))  # type: ignore[arg-type]


def test_a_base_that_is_right_is_kept_for_others_and_nothing_is_fetched() -> None:
    peers = Peers(Adapted())
    for chunk in peers.blob.chunks:
        peers.store.delete(chunk)
    peers.meet(Adapted())
    assert bytes(read_blob(peers.store, peers.blob)) == file(Adapted())
    assert (peers.fetched, peers.notes) == ([], [])


def test_another_base_is_replaced_and_that_is_said() -> None:
    peers, model = Peers(Adapted()), Adapted(1)
    peers.meet(model)
    assert Frozen(model).digest() == peers.genesis.base
    assert peers.fetched == [1, None]
    assert "are not the run's: taking those" in peers.notes[0]


def test_other_tensors_are_refused_by_name_before_all_is_fetched() -> None:
    peers = Peers(Adapted())
    wide, model = Adapted(width=6), Adapted()
    model.second.float()
    with pytest.raises(ModelMismatch, match=r"second\.weight is BF16 3×6 here and BF16 3×5 in the run"):
        peers.meet(wide)
    with pytest.raises(ModelMismatch, match=r"second\.weight is F32 3×5 here and BF16 3×5 in the run"):
        peers.meet(model)
    with pytest.raises(ModelMismatch, match="scale is absent here and F32 scalar in the run"):
        peers.meet(nn.Linear(2, 2))
    assert peers.fetched == [1, 1, 1]


def test_other_values_that_nobody_hands_out_are_refused() -> None:
    peers = Peers(Adapted())
    alone = Genesis("run", 1, "", (), 1, "0" * 64, base=peers.genesis.base)
    peers.meet(Adapted(), alone)
    with pytest.raises(ModelMismatch, match="which does not hand them out"):
        peers.meet(Adapted(1), alone)


def test_a_host_that_hands_out_something_else_than_it_says() -> None:
    peers = Peers(Adapted())
    lying = Genesis("run", 1, "", (), 1, "0" * 64, (peers.blob,), base="f" * 64)
    with pytest.raises(CorruptData, match="is not what its genesis says"):
        peers.meet(Adapted(1), lying)


def test_a_run_of_an_older_release_is_not_compared() -> None:
    peers = Peers(Adapted())
    peers.meet(Adapted(1), Genesis("run", 1, "", (), 1, "0" * 64))
    assert peers.fetched == []


@pytest.fixture
def leaving() -> Iterator[list[potluck.Run]]:
    runs: list[potluck.Run] = []
    yield runs
    for run in runs:
        run.leave()


@pytest.mark.integration
def test_a_base_comes_from_whoever_has_it(tmp_path: Path, leaving: list[potluck.Run]) -> None:
    """The second has the right one of its own; when the first has gone, the third gets it from there."""

    def here(name: str) -> dict[str, object]:
        return {"name": name, "directory": tmp_path / name, "listen": "127.0.0.1"}

    model = Adapted()
    first = potluck.host(potluck.Recipe(), model, **here("first"))  # type: ignore[arg-type]
    leaving.append(first)
    leaving.append(potluck.join(first.invite, Adapted(), **here("second")))  # type: ignore[arg-type]
    first.leave()
    third, notes = Adapted(1), []
    run = potluck.join(first.invite, third, watch=notes.append, **here("third"))  # type: ignore[arg-type]
    leaving.append(run)
    assert Frozen(third).digest() == Frozen(model).digest()
    assert torch.equal(third.adapter.weight, model.adapter.weight)
    assert any("taking those" in note for note in notes)
    assert run.task_files() == {}
    with pytest.raises(ModelMismatch, match="BF16 3×6 here"):
        potluck.join(first.invite, Adapted(width=6), **here("fourth"))  # type: ignore[arg-type]
