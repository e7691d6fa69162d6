import contextlib
import math
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potluck.errors import RecipeError
from potluck.recipe import BUILT_IN, DEMO, MAX_TOML_BYTES, End, Inner, Lora, Recipe, Rounds, Task, built_in
from potluck.recipe.checks import CHOICES, LIMITS, bpe_vocab
from potluck.recipe.presets import PRESETS

plain = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
keys = plain.filter(lambda key: not key.startswith("_") and key != "auto_map")
numbers = st.integers(-(1 << 63), (1 << 63) - 1) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    plain | st.booleans() | numbers,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)
names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,20}", fullmatch=True)
tasks = st.builds(
    Task,
    kind=st.just("causal-lm"),
    config=st.dictionaries(keys, values, max_size=4).map(lambda table: {**table, "model_type": "llama"}),
    tokenizer=st.integers(320, 262_144).map("bpe-{}".format) | st.just("some/name"),
    text=plain.filter(bool),
    context=st.integers(2, 1 << 20),
    batch=st.integers(1, 65_536),
    seed=st.integers(0, (1 << 53) - 1),
)
recipes = st.builds(
    Recipe,
    name=names,
    task=tasks | st.just(Task()),
    inner=st.builds(Inner, lr=st.floats(1e-9, 10), weight_decay=st.integers(0, 10)),
    rounds=st.builds(Rounds, tokens=st.integers(1, 1 << 50), grace_s=st.floats(0.1, 3600)),
)


@given(recipes)
def test_what_is_written_is_read_back(recipe: Recipe) -> None:
    text = recipe.to_toml()
    assert Recipe.from_toml(text) == recipe
    assert Recipe.from_toml(text).to_toml() == text


@given(st.text(max_size=200))
def test_any_text_is_a_recipe_or_a_recipe_error(text: str) -> None:
    with contextlib.suppress(RecipeError):
        assert isinstance(Recipe.from_toml(text), Recipe)


def test_the_demo_cut_at_each_character_is_a_recipe_or_a_recipe_error() -> None:
    text = DEMO.to_toml()
    read = 0
    for length in range(len(text)):
        with contextlib.suppress(RecipeError):
            Recipe.from_toml(text[:length])
            read += 1
    assert 0 < read < len(text)


def test_an_empty_recipe_is_all_defaults() -> None:
    assert Recipe.from_toml("") == Recipe()


def test_the_order_of_keys_does_not_matter() -> None:
    one = 'name = "a"\n[task]\nkind = "causal-lm"\n[task.config]\nmodel_type = "gpt2"\nn_layer = 2\n'
    two = '[task.config]\nn_layer = 2\nmodel_type = "gpt2"\n[task]\nkind = "causal-lm"\n'
    assert Recipe.from_toml(one).to_toml() == Recipe.from_toml('name = "a"\n' + two).to_toml()


def test_adapters_and_own_code_in_a_recipe() -> None:
    adapters = (
        'checkpoint = "a/b"\ntokenizer = "a/b"\nlora = {rank = 8, alpha = 32, targets = "q_proj, v_proj"}'
    )
    recipe = Recipe.from_toml(f'[task]\nkind = "causal-lm"\n{adapters}\n')
    assert recipe.task.lora == Lora(8, 32.0, "q_proj, v_proj")
    assert Recipe.from_toml(recipe.to_toml()) == recipe
    own = Recipe.from_toml('[task]\nkind = "my_package.my_task:make"\n[end]\nepochs = 2\n')
    assert own.task.kind == "my_package.my_task:make"


def test_a_whole_number_stands_for_a_number() -> None:
    recipe = Recipe.from_toml("[inner]\nlr = 1\n")
    assert type(recipe.inner.lr) is float
    assert replace(Recipe(), inner=Inner(lr=1)).to_toml() == recipe.to_toml()


LLAMA = '[task]\nkind = "causal-lm"\n[task.config]\nmodel_type = "llama"\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name", "not TOML"),
        ("x = " + "[" * 5000, "not TOML"),
        ("nmae = 3", "did you mean name"),
        ("[rounds]\ntoken = 3", "did you mean tokens"),
        ("[rounds]\nzzz = 3", "grace_s"),
        ("task = 3", "task = 3 should be a table"),
        ("name = 3", "name = 3 should be a string"),
        ('name = "a b"', "letters"),
        ('name = "a.b"', "letters"),
        (f'name = "{"a" * 65}"', "64"),
        ("[task]\nbatch = true", "whole number"),
        ("[task]\nbatch = 1.5", "whole number"),
        ("[task]\nbatch = 0", "from 1 to 65,536"),
        ("[task]\ncontext = 1048577", "from 2 to 1,048,576"),
        ("[task]\nseed = -1", "task.seed"),
        ('[task]\nkind = "casual-lm"', "did you mean 'causal-lm'"),
        ('[task]\nkind = "os.system"', "should be one of custom, causal-lm"),
        ('[task]\nkind = "os:system()"', "should be one of"),
        ('[task]\nkind = "a b:c"', "should be one of"),
        ('[task]\nkind = "mine:make"\n[data]\nsamples = 9', "counts its own"),
        ('[task]\nkind = "masked-lm"', 'task.kind = "masked-lm" needs either task.config'),
        ('[task]\nkind = "image-classification"', "needs either task.config"),
        ('[task]\nimages = ""', "datasets:NAME\\[:IMAGE"),
        (LLAMA.replace("[task]", "[task]\nlora.rank = 8"), "task.lora.rank = 8 needs task.checkpoint"),
        ("[task]\nlora.rank = -1", "task.lora.rank = -1 should be from 0 to"),
        ("[task]\nlora.alpha = 0", "task.lora.alpha = 0"),
        ('[task]\nlora.targets = "(a+)+$"', "names of layers"),
        ('[task]\nlora.targets = "q_proj,"', "names of layers"),
        ("[task]\nlora = 3", "task.lora = 3 should be a table"),
        ('[task]\ntext = ""', "datasets:NAME"),
        ('[task]\ntokenizer = "bpe-12"', "N from 320"),
        ('[task]\ntokenizer = "bpe-9999999"', "N from 320"),
        ('[task]\ntokenizer = ""', "bpe-N"),
        ('[task]\nkind = "causal-lm"', "task.config"),
        ('[task]\nkind = "causal-lm"\n[task.config]\nn = 3', "model_type"),
        ('[task]\nkind = "causal-lm"\ncheckpoint = "a/b"', "tokenizer"),
        (LLAMA.replace("[task]", '[task]\ncheckpoint = "a/b"'), "not both"),
        (LLAMA + 'auto_map = "x"', "auto_map is refused"),
        (
            LLAMA.replace('"llama"', '"timm_wrapper"'),
            "model_type = 'timm_wrapper' is refused: it leads to timm",
        ),
        (LLAMA + 'inner = {model_type = "timm_backbone"}', "inner.model_type = 'timm_backbone' is refused"),
        (LLAMA + 'model_args = {checkpoint_path = "a"}', "model_args = .* is refused: it leads to timm"),
        (LLAMA + 'architecture = "hf-hub:a/b"', "architecture = 'hf-hub:a/b' is refused"),
        (LLAMA + 'backbone = "a/b"', "backbone = 'a/b' is refused"),
        (LLAMA + '_attn_implementation = "a/b"', "_attn_implementation is refused"),
        (LLAMA + 'inner = [{attn_implementation = "a/b"}]', r"inner\[0\].attn_implementation is refused"),
        (LLAMA + "day = 1979-05-27", "should be a string, number"),
        (LLAMA + "x = inf", "finite"),
        (LLAMA + "x = 9223372036854775808", "64 bits"),
        (LLAMA + "x = " + "[" * 12 + "]" * 12, "deep"),
        (LLAMA + f'x = "{"a" * 5000}"', "4096 characters"),
        ("[rounds]\nfragments = 0", "fragments = 0 should be from 1 to 64"),
        ("[rounds]\nfragments = 65", "from 1 to 64"),
        ('[rounds]\noverlap = "mixed"', "did you mean 'mix'"),
        ("[rounds]\nmix = 1.5", "mix = 1.5 should be from 0 to 1"),
        ('[rounds]\nkeeps = true\noverlap = "mix"', "keeps = true needs rounds.overlap"),
        ("[inner]\nlr = nan", "finite"),
        ("[inner]\nlr = inf", "finite"),
        ("[inner]\nlr = 0", "inner.lr"),
        ('[inner]\nlr = "fast"', "should be a number"),
        ("[inner]\nlr = true", "should be a number"),
        ("[inner]\nlr = " + "9" * 400, "inner.lr"),
        ("[inner]\nlr = " + "9" * 5000, "not TOML"),
        ('[outer]\nkind = "adam"', "average, plain, nesterov"),
        ("[outer]\nmomentum = 1.0", "outer.momentum"),
        ('[rounds]\ncodec = "int9"', "did you mean 'int8'"),
        ("[rounds]\nparts = 0", "from 1 to 65,536"),
        ("[end]\ntokens = -1", "end.tokens"),
        ("#" * (MAX_TOML_BYTES + 1), "over the limit"),
    ],
)
def test_a_bad_value_is_named(text: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        Recipe.from_toml(text)


def test_a_recipe_made_in_python_is_checked_too() -> None:
    wrong: list[Any] = [
        replace(DEMO, inner=Inner(lr=math.nan)),
        replace(DEMO, inner="fast"),  # type: ignore[arg-type]
        replace(DEMO, name="\ud800"),
        replace(DEMO, task=replace(DEMO.task, config={"model_type": "llama", 3: 4})),
        replace(DEMO, task=replace(DEMO.task, config={"model_type": "llama", "x": None})),
        replace(DEMO, task=replace(DEMO.task, text="\ud800")),
        replace(DEMO, task=replace(DEMO.task, config={"model_type": "llama", "x": ["a" * 4000] * 30})),
    ]
    for recipe in wrong:
        with pytest.raises(RecipeError):
            recipe.to_toml()


def test_every_number_has_limits_and_every_default_is_allowed() -> None:
    Recipe().validate()
    for section in (entry for entry in fields(Recipe()) if is_dataclass(getattr(Recipe(), entry.name))):
        table = getattr(Recipe(), section.name)
        for entry in fields(table):
            if type(getattr(table, entry.name)) in (int, float):
                assert f"{section.name}.{entry.name}" in LIMITS


def test_load_reads_a_file_and_names_it_in_errors(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(DEMO.to_toml(), "utf-8")
    assert Recipe.load(path) == DEMO
    path.write_text("nmae = 3", "utf-8")
    with pytest.raises(RecipeError, match=r"run\.toml: .*did you mean name"):
        Recipe.load(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match=r"run\.toml is not UTF-8"):
        Recipe.load(path)
    with pytest.raises(RecipeError, match="can't be read"):
        Recipe.load(tmp_path / "none.toml")


def test_built_in_recipes_are_valid_and_found_by_name() -> None:
    assert built_in("shakespeare") is DEMO
    for name, recipe in BUILT_IN.items():
        assert Recipe.from_toml(recipe.to_toml()) == recipe
        assert recipe.name == name
    with pytest.raises(RecipeError, match="did you mean shakespeare"):
        built_in("shakespere")
    with pytest.raises(RecipeError, match="there are shakespeare"):
        built_in("zzz")


@pytest.mark.parametrize("name", list(PRESETS))
def test_a_preset_fills_in_what_the_recipe_does_not_say(name: str) -> None:
    wanted = PRESETS[name]["rounds"]
    alone = Recipe.from_toml(f'preset = "{name}"')
    assert alone.rounds == Rounds(**wanted)
    assert alone == Recipe.preset(name)
    assert replace(alone, rounds=Rounds()) == Recipe(), "and touches nothing else"
    said = Recipe.from_toml(f'preset = "{name}"\n[rounds]\ncodec = "fp32"\nparts = 3\n[end]\nrounds = 5\n')
    assert said.rounds == Rounds(**{**wanted, "codec": "fp32", "parts": 3})
    assert said == Recipe.preset(name, rounds={"codec": "fp32", "parts": 3}, end=End(rounds=5))
    assert Recipe.from_toml(said.to_toml()) == said, "what travels has every value written out"


def test_a_section_that_is_whole_is_taken_as_it_is() -> None:
    assert Recipe.preset("wan", rounds=Rounds(tokens=7)).rounds == Rounds(tokens=7)
    assert Recipe.preset("wan", name="x", task={"context": 9}).task.context == 9


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('preset = "wam"', "no preset 'wam'; did you mean 'wan'"),
        ('preset = "zzz"', "there are local, lan, wan, volunteer"),
        ("preset = 3", "no preset 3; there are"),
        ('preset = "wan"\nrounds = 3', "rounds = 3 should be a table"),
        ('preset = "wan"\n[rounds]\ncodec = "int9"', "did you mean 'int8'"),
        ('preset = "wan"\n[rounds]\ntoken = 3', "did you mean tokens"),
    ],
)
def test_what_is_wrong_beside_a_preset_is_named(text: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        Recipe.from_toml(text)


def test_what_is_wrong_in_a_preset_of_python_is_named() -> None:
    with pytest.raises(RecipeError, match="did you mean 'local'"):
        Recipe.preset("locl")
    with pytest.raises(RecipeError, match="did you mean tokens"):
        Recipe.preset("wan", rounds={"token": 3})
    with pytest.raises(RecipeError, match="there is no 'rnds' in a recipe; did you mean rounds"):
        Recipe.preset("wan", rnds={})


def test_the_size_of_a_vocabulary() -> None:
    assert bpe_vocab("bpe-1024") == 1024
    assert bpe_vocab("gpt2") is None


def test_recipes_allow_the_codecs_and_outer_optimizers_there_are() -> None:
    from potluck.codecs import CODECS
    from potluck.optim.outer import KINDS

    assert set(CHOICES["rounds.codec"]) == set(CODECS)
    assert set(CHOICES["outer.kind"]) == set(KINDS)


def test_a_learning_rate_cools_down_towards_an_end() -> None:
    cooling = replace(DEMO, inner=replace(DEMO.inner, cooldown=0.5))
    cooling.validate()
    replace(cooling, end=End(rounds=3)).validate()
    replace(cooling, end=End(epochs=2)).validate()
    with pytest.raises(
        RecipeError, match=r"a learning rate that falls \(schedule 'wsd'\) needs the run's end"
    ):
        replace(cooling, end=End()).validate()


def test_a_switch_is_true_or_false() -> None:
    assert Recipe.from_toml("[rounds]\nkeeps = true\n").rounds.keeps
    with pytest.raises(RecipeError, match=r"rounds\.keeps = 1 should be true or false"):
        Recipe.from_toml("[rounds]\nkeeps = 1\n")


def test_how_much_of_a_run_is_done() -> None:
    assert End().done(10, 10) == 0
    assert End(tokens=100).done(25, 7) == 0.25
    assert End(tokens=100, rounds=10).done(25, 7) == 0.7
    assert End(rounds=10).done(0, 11) == 1
