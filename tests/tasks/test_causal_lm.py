import json
import math
import os
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

from potluck.data.assets import build_assets  # noqa: E402
from potluck.data.tokens import rows  # noqa: E402
from potluck.errors import CorruptData, RecipeError, StoreError, UsageError  # noqa: E402
from potluck.recipe import DEMO, Inner, Recipe  # noqa: E402
from potluck.tasks import task  # noqa: E402
from potluck.tasks.causal_lm import CausalLM  # noqa: E402
from tests.tiny import LINES, write_text  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = {
    "model_type": "gpt_neox",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
}
RECIPE = replace(
    DEMO,
    task=replace(DEMO.task, text="*.txt", tokenizer="bpe-400", config=TINY, context=32, batch=4),
    inner=Inner(lr=1e-2, warmup_steps=4),
)


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return build_assets(RECIPE, base=write_text(tmp_path_factory.mktemp("text")))


@pytest.fixture
def lm(assets: dict[str, bytes]) -> CausalLM:
    return task(RECIPE, assets)


def with_task(**changes: Any) -> Recipe:
    return replace(RECIPE, task=replace(RECIPE.task, **changes))


def trained(lm: CausalLM, steps: int = 60) -> Any:
    model = lm.model()
    lm.train(model, lm.optimizer(model), islice(lm.random_batches(1), steps))
    return model


def test_weights_follow_the_seed_and_leave_the_worlds_chance_alone(assets: dict[str, bytes]) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, two = task(RECIPE, assets).model(), task(RECIPE, assets).model()
    other = task(with_task(seed=1), assets).model()
    assert torch.equal(torch.rand(3), expected)
    pairs = list(zip(one.parameters(), two.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert {weight.dtype for weight in one.parameters()} == {torch.float32}


def test_an_epoch_has_every_window_once(lm: CausalLM) -> None:
    seen: list[bytes] = []
    for batch in lm.batches(range(lm.blocks)):
        assert batch["input_ids"] is batch["labels"]
        assert batch["input_ids"].dtype == torch.int64
        seen += [row.numpy().tobytes() for row in batch["input_ids"]]
    assert len(seen) == len(rows(lm.text.train, 32))
    first = next(lm.batches([0]))["input_ids"]
    assert torch.equal(first, next(lm.batches([0]))["input_ids"])
    assert not torch.equal(first, next(lm.batches([lm.blocks]))["input_ids"]), "another order in each epoch"


def test_random_batches_follow_their_seed(lm: CausalLM) -> None:
    batch = next(lm.random_batches(3))
    assert batch["input_ids"].shape == batch["labels"].shape == (4, 32)
    assert lm.step_tokens == 4 * 32
    assert batch["input_ids"].dtype == torch.int64
    assert torch.equal(batch["input_ids"], next(lm.random_batches(3))["input_ids"])
    assert not torch.equal(batch["input_ids"], next(lm.random_batches(4))["input_ids"])


def test_training_learns_and_reports_each_loss(lm: CausalLM) -> None:
    model = lm.model()
    before, _ = lm.evaluate(model)
    losses: list[float] = []
    lm.train(model, lm.optimizer(model), islice(lm.random_batches(1), 60), losses.append)
    after, bits = lm.evaluate(model)
    assert len(losses) == 60
    assert losses[0] == pytest.approx(before, abs=0.3)
    assert before == pytest.approx(math.log(400), abs=0.4)
    assert after < 0.6 * before
    assert model.training
    assert all(weight.grad is None for weight in model.parameters())
    assert 0 < bits < 8


def test_a_hook_on_the_optimizer_ends_training(lm: CausalLM) -> None:
    class Enough(Exception):
        pass

    model = lm.model()
    optimizer = lm.optimizer(model)
    seen: list[float] = []

    def hook(*_: object) -> None:
        if len(seen) == 3:
            raise Enough

    optimizer.register_step_post_hook(hook)
    with pytest.raises(Enough):
        lm.train(model, optimizer, lm.random_batches(1), seen.append)
    assert len(seen) == 3


def test_the_rate_warms_up_and_stays(lm: CausalLM) -> None:
    model = lm.model()
    optimizer = lm.optimizer(model)
    rates: list[float] = []
    optimizer.register_step_post_hook(lambda own, *_: rates.append(own.param_groups[0]["lr"]))
    lm.train(model, optimizer, islice(lm.random_batches(1), 3))
    lm.train(model, optimizer, islice(lm.random_batches(1), 4))
    assert rates == pytest.approx([2e-3, 4e-3, 6e-3, 8e-3, 1e-2, 1e-2, 1e-2])
    assert {group["lr"] for group in optimizer.param_groups} == {1e-2}


def test_vectors_do_not_decay(lm: CausalLM) -> None:
    model = lm.model()
    groups = lm.optimizer(model).param_groups
    assert sorted(group["weight_decay"] for group in groups) == [0.0, 0.1]
    for group in groups:
        assert {weight.ndim > 1 for weight in group["params"]} == {group["weight_decay"] > 0}
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_gradients_are_clipped(lm: CausalLM) -> None:
    model = lm.model()
    optimizer = lm.optimizer(model)
    norms: list[float] = []

    def hook(*_: object) -> None:
        norms.append(math.sqrt(sum(float(w.grad.square().sum()) for w in model.parameters())))

    optimizer.register_step_pre_hook(hook)
    lm.recipe = replace(RECIPE, inner=replace(RECIPE.inner, clip=0.01))
    lm.train(model, optimizer, islice(lm.random_batches(1), 2))
    assert norms == pytest.approx([0.01, 0.01], rel=1e-3)


def test_evaluation_is_the_mean_over_predicted_tokens(lm: CausalLM, assets: dict[str, bytes]) -> None:
    model = lm.model()
    held = np.frombuffer(assets["heldout.bin"], "<u2").astype(np.int64)
    rows = torch.from_numpy(held[: len(held) // 32 * 32].reshape(-1, 32))
    with torch.no_grad():
        logits = model(input_ids=rows).logits[:, :-1]
    nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()).item()
    loss, bits = lm.evaluate(model)
    assert loss == pytest.approx(nats, rel=1e-5)
    size = json.loads(assets["meta.json"])["heldout_bytes"]
    assert bits == pytest.approx(nats / math.log(2) * len(held) / size, rel=1e-5)
    few, _ = lm.evaluate(model, 1)
    assert few != loss


def test_samples_are_greedy_or_follow_their_seed(lm: CausalLM) -> None:
    model = trained(lm)
    greedy = lm.sample(model, "The 1", 40)
    assert greedy.startswith("The 1")
    assert greedy == lm.sample(model, "The 1", 40)
    assert "cat sat on the" in greedy
    assert lm.sample(model, "The 1", 40, seed=1) == lm.sample(model, "The 1", 40, seed=1)
    assert lm.sample(model, "The 1", 40, seed=1) != lm.sample(model, "The 1", 40, seed=2)
    assert isinstance(lm.sample(model, "", 3), str)
    assert model.training


def test_an_export_loads_with_transformers_and_generates_the_same(lm: CausalLM, tmp_path: Path) -> None:
    model = trained(lm)
    lm.export(model, tmp_path / "deep" / "out")
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "deep" / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "deep" / "out")
    inputs = tokenizer("The 1", return_tensors="pt")
    ids = read.generate(inputs["input_ids"], max_new_tokens=20, do_sample=False)
    assert tokenizer.decode(ids[0], skip_special_tokens=True) == lm.sample(model, "The 1", 20)
    assert Recipe.load(tmp_path / "deep" / "out" / "potluck-recipe.toml") == RECIPE
    assert os.listdir(tmp_path / "deep") == ["out"]


def test_an_export_replaces_an_earlier_one_and_nothing_else(lm: CausalLM, tmp_path: Path) -> None:
    model = lm.model()
    (tmp_path / "empty").mkdir()
    for _ in range(2):
        lm.export(model, tmp_path / "empty")
    assert os.listdir(tmp_path) == ["empty"]
    (tmp_path / "empty" / "notes.md").write_text("mine")
    with pytest.raises(UsageError, match="holds other files"):
        lm.export(model, tmp_path / "empty")
    (tmp_path / "about").mkdir()
    (tmp_path / "about" / "README.md").write_text("mine")
    with pytest.raises(UsageError, match="holds other files"):
        lm.export(model, tmp_path / "about")
    assert (tmp_path / "about" / "README.md").read_text() == "mine"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="holds other files"):
        lm.export(model, tmp_path / "mine")
    assert os.listdir(tmp_path / "mine") == ["config.json"]
    with pytest.raises(UsageError, match="holds other files"):
        lm.export(model, tmp_path / "mine" / "config.json")
    with pytest.raises(StoreError, match="can't be written"):
        lm.export(model, tmp_path / "mine" / "config.json" / "below")


def test_the_host_starts_from_a_checkpoint_and_others_do_not_need_it(lm: CausalLM, tmp_path: Path) -> None:
    model = trained(lm, 2)
    lm.export(model, tmp_path / "trained")
    (tmp_path / "a.txt").write_text(LINES, "utf-8")
    recipe = with_task(config={}, checkpoint="trained", tokenizer="trained")
    again = task(recipe, build_assets(recipe, base=tmp_path))
    ours = dict(model.named_parameters())
    host = dict(again.model(base=tmp_path).named_parameters())
    joiner = dict(again.model().named_parameters())
    assert list(ours) == list(host) == list(joiner)
    assert all(torch.equal(ours[name], host[name]) for name in ours)
    assert all(ours[name].shape == joiner[name].shape for name in ours)
    weights = tmp_path / "trained" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(RecipeError, match="can't make"):
        again.model(base=tmp_path)
    weights.unlink()
    with pytest.raises(RecipeError, match="can't make"):
        again.model(base=tmp_path)


def test_other_kinds_of_models_work_too(assets: dict[str, bytes]) -> None:
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": 400, "bos_token_id": 0, "eos_token_id": 0}
    config = {"model_type": "gpt2", **sizes}
    lm = task(with_task(config=config), {**assets, "config.json": json.dumps(config).encode()})
    assert lm.evaluate(trained(lm, 1), 1)[0] < 10


@pytest.mark.parametrize(
    ("name", "raw", "error", "words"),
    [
        ("tokenizer.json", b"{}", CorruptData, r"tokenizer\.json"),
        ("train.bin", b"\0\0\0", CorruptData, "whole number of tokens"),
        ("train.bin", b"\xff\xff" * 100, CorruptData, "vocabulary"),
        ("heldout.bin", b"\xff\xff" * 100, CorruptData, "vocabulary"),
        ("meta.json", b"{", CorruptData, "heldout_bytes"),
        ("meta.json", b"[]", CorruptData, "heldout_bytes"),
        ("meta.json", b'{"heldout_bytes": 0}', CorruptData, "heldout_bytes = 0"),
        ("meta.json", b'{"heldout_bytes": true}', CorruptData, "heldout_bytes = True"),
        ("config.json", b"\xff", CorruptData, "not JSON"),
        ("config.json", b"[" * 100_000, CorruptData, "not JSON"),
        ("config.json", b"[]", CorruptData, "model_type"),
        ("config.json", b'{"model_type": "lama"}', RecipeError, "lama"),
        ("config.json", b'{"model_type": "gpt_neox", "hidden_size": "x"}', RecipeError, "gpt_neox"),
        ("config.json", b'{"model_type": "gpt2", "auto_map": {}}', RecipeError, "refused"),
        ("config.json", b'{"model_type": "gpt2", "_attn_implementation": "a/b"}', RecipeError, "refused"),
        (
            "config.json",
            b'{"model_type": "llama", "max_position_embeddings": 8}',
            RecipeError,
            "over the model's",
        ),
    ],
)
def test_files_from_a_bad_host(
    assets: dict[str, bytes], name: str, raw: bytes, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        task(RECIPE, {**assets, name: raw})


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "vit"},
        {**TINY, "num_attention_heads": 0},
        {**TINY, "num_attention_heads": 5},
        {**TINY, "hidden_size": -4},
        {**TINY, "hidden_act": "wishful"},
    ],
)
def test_a_config_of_no_possible_language_model(assets: dict[str, bytes], config: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="transformers can't make"):
        task(RECIPE, {**assets, "config.json": json.dumps(config).encode()}).model()


def test_a_missing_file_is_named(assets: dict[str, bytes]) -> None:
    with pytest.raises(CorruptData, match=r"lack train\.bin"):
        task(RECIPE, {name: raw for name, raw in assets.items() if name != "train.bin"})


def test_only_built_in_tasks_are_made(assets: dict[str, bytes]) -> None:
    for kind in ("custom", "os.system"):
        with pytest.raises(RecipeError, match=r"no built-in task \(there are causal-lm, masked-lm, image-"):
            task(with_task(kind=kind), assets)
