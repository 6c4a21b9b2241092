"""Rows in flight against plain forwards of each row alone: joining, leaving and sharing must change nothing."""

import copy
from types import SimpleNamespace

import pytest
import torch
from architectures import made
from hypothesis import given, settings
from hypothesis import strategies as st

from nrt_cli.backends.local import attention, decoding
from nrt_cli.backends.local.decoding import Batch, SharedBatch, open_batch, prepacked
from nrt_cli.backends.local.fused import fuse, is_gated

PROMPTS = [(3, 1, 4, 1, 5), (9, 2, 6), (3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5), (8,)]


def model_of(kind):
    model = made(kind)
    for weight in model.parameters():
        # Far from uniform, so that a row which sees a wrong token shows it.
        weight.data = weight.data * 3 if weight.ndim > 1 else weight.data
    assert attention.enable(model) is None
    return model


@pytest.fixture(scope="module", params=["llama", "qwen3", "gemma"])
def model(request):
    return model_of(request.param)


class Twin:
    """A batch beside the list of what each of its rows has read."""

    def __init__(self, model, batch):
        self.model, self.batch, self.rows = model, batch, []

    @torch.no_grad()
    def check(self, logits, rows):
        for got, row in zip(logits, rows, strict=True):
            want = self.model(torch.tensor([row]), use_cache=False).logits[0, -1]
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)

    def add(self, prompts):
        new = [list(prompt) for prompt in prompts]
        self.rows += new
        self.check(self.batch.add(prompts), new)

    def step(self, tokens):
        for row, token in zip(self.rows, tokens, strict=True):
            row.append(token)
        self.check(self.batch.step(tokens, [True] * len(tokens)), self.rows)

    def keep(self, rows):
        self.batch.keep(rows)
        self.rows = [self.rows[row] for row in rows]


def llama():
    model = model_of("llama")
    return Twin(model, SharedBatch(model))


@pytest.fixture(params=["shared", "flash", "anywhere", "padded"])
def twin(request, model, monkeypatch):
    if request.param == "flash":
        monkeypatch.setattr(decoding, "FLASH_TYPES", (torch.float32,))
    if request.param == "anywhere":
        monkeypatch.setattr(attention, "has_flash", lambda query: False)
    return Twin(model, Batch(model, 0) if request.param == "padded" else SharedBatch(model))


@pytest.fixture
def all_laid_out(monkeypatch):
    """Also such small weights as these models have."""
    monkeypatch.setattr(decoding, "SMALL", 0)


@pytest.fixture
def read(monkeypatch):
    """How many tokens each forward pass had."""
    run, sizes = attention.run, []

    def counting(model, pattern, ids, *rest, **others):
        sizes.append(ids.shape[1])
        return run(model, pattern, ids, *rest, **others)

    monkeypatch.setattr(attention, "run", counting)
    return sizes


def test_rows_of_several_prompts_decode_as_alone(twin):
    twin.add([PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[2], PROMPTS[2], PROMPTS[2]])
    for step in range(4):
        twin.step([(7 * row + 11 * step) % 60 for row in range(6)])


@pytest.mark.parametrize("kernel", [False, True], ids=["anywhere", "kernel"])
@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_attention_to_prompt_and_own_tokens_equals_its_formula(dtype, near, kernel, monkeypatch):
    """Rows in no order of their prompts; blocks of 512 keys are hidden whole, of a short prompt and of late rows."""
    monkeypatch.setattr(decoding, "FLASH_TYPES", (dtype,) if kernel else ())
    lengths, prompts, joined, columns = [700, 40], [1, 0, 0], [0, 700, 1299], 1300
    dice = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=dice, dtype=dtype)  # noqa: E731
    batch = SharedBatch(SimpleNamespace(device=torch.device("cpu"), dtype=dtype))
    batch.lengths_P, batch.prompt_R, batch.joined_R = map(torch.tensor, (lengths, prompts, joined))
    batch.shared, batch.own, batch.columns = [draw(2, 2, 2, 700, 16)], [draw(2, 3, 2, 1310, 16)], columns - 1
    batch._arrange()
    batch.before = attention.hiding(torch.arange(columns) < batch.joined_R[:, None], dtype)
    query, key, value = draw(3, 6, 1, 16), draw(3, 2, 1, 16), draw(3, 2, 1, 16)
    out = batch.attend(0, query, key, value, 0.3)
    assert (out.shape, out.dtype) == (query.shape, dtype)
    torch.testing.assert_close(
        batch.own[0][:, :, :, columns - 1], torch.stack([key, value])[:, :, :, 0], rtol=0, atol=0
    )
    for row, (prompt, first) in enumerate(zip(prompts, joined, strict=True)):
        parts = batch.shared[0][:, prompt, :, : lengths[prompt]], batch.own[0][:, row, :, first:columns]
        keys, values = torch.cat(parts, 2).double().repeat_interleave(3, 1)
        want = (0.3 * query[row].double() @ keys.mT).softmax(-1) @ values
        torch.testing.assert_close(out[row].double(), want, rtol=near, atol=near)


def test_rows_leave_and_join_between_steps(twin):
    """Unequal numbers of rows for a prompt, a prompt without any, newcomers to a prompt that is here already."""
    twin.add([PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[1]])
    twin.step([1, 2, 3, 4])
    twin.keep([3, 0, 1])
    twin.step([5, 6, 7])
    twin.add([PROMPTS[2], PROMPTS[0], PROMPTS[2]])
    twin.step([1, 2, 3, 4, 5, 6])
    twin.keep([4, 5, 2])
    twin.step([9, 9, 9])
    twin.keep([])
    twin.add([PROMPTS[3]])
    twin.step([2])


@settings(max_examples=25)
@given(data=st.data())
def test_any_order_of_joining_and_leaving_changes_nothing(data):
    twin = llama()
    for _ in range(data.draw(st.integers(1, 4))):
        twin.add(data.draw(st.lists(st.sampled_from(PROMPTS), min_size=1, max_size=3)))
        for _ in range(data.draw(st.integers(0, 3))):
            twin.step(data.draw(st.lists(st.integers(0, 60), min_size=len(twin.rows), max_size=len(twin.rows))))
        kept = data.draw(st.lists(st.sampled_from(range(len(twin.rows))), min_size=1, unique=True))
        twin.keep(kept)


def test_room_for_more_tokens_is_made_as_they_come(monkeypatch):
    monkeypatch.setattr(decoding, "ROOM", 3)
    twin = llama()
    twin.add(PROMPTS[:2])
    for step in range(8):
        twin.step([step, step + 1])


def test_long_prompts_are_read_in_parts(read, monkeypatch):
    monkeypatch.setattr(decoding, "PREFILL_TOKENS", 8)
    twin = llama()
    twin.add([PROMPTS[0], PROMPTS[1], PROMPTS[2]])
    assert read == [5 + 3, 11], "each prompt once, no pass above 8 tokens but for the prompt that is longer"
    twin.step([1, 2, 3])


def test_a_beginning_that_all_prompts_share_is_read_once(read):
    twin, shots = llama(), tuple(range(10, 50))
    twin.add([(*shots, 1, 2), (*shots, 3), (*shots, 3), (*shots, 5, 6, 7)])
    assert read == [40 + 2 + 1 + 3]
    twin.step([1, 2, 3, 4])


@pytest.mark.usefixtures("all_laid_out")
def test_prepacked_layers_compute_the_same_and_are_restored():
    model = model_of("qwen3")
    ids = torch.arange(12)[None]
    forwards = {name: module.forward for name, module in model.named_modules()}
    with torch.no_grad():
        want = model(ids, use_cache=False).logits
        with prepacked(model):
            changed = [name for name, module in model.named_modules() if "forward" in vars(module)]
            got = model(ids, use_cache=False).logits
    assert "lm_head" in changed
    assert len(changed) == 2 + 2 * 7, "the model, the head, and in each of two layers q, k, v, o, gate, up and down"
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert not any("forward" in vars(module) for module in model.modules())
    assert forwards.keys() == dict(model.named_modules()).keys()


@pytest.mark.usefixtures("all_laid_out")
@pytest.mark.parametrize("kind", ["llama", "gemma"])
def test_prepacked_feed_forwards_compute_the_same_and_are_restored(kind):
    model = model_of(kind)
    fuse(model)
    before = {module: module.forward for module in model.modules() if is_gated(module)}
    assert len(before) == {"llama": 2, "gemma": 0}[kind], "each layer's; gemma's has another activation"
    ids = torch.arange(12)[None]
    with torch.no_grad():
        want = model(ids, use_cache=False).logits
        with prepacked(model), prepacked(model):
            assert not any(is_gated(module) for module in model.modules())
            torch.testing.assert_close(model(ids, use_cache=False).logits, want, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model(ids, use_cache=False).logits, want, rtol=0, atol=0)
    assert {module: module.forward for module in model.modules() if is_gated(module)} == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("kind", "known"),
    [
        *((kind, True) for kind in ("llama", "mistral", "qwen2", "gemma", "granite")),
        # Norms of queries and keys, some of the channels turned, neighbours turned, what is large cut off.
        *((kind, False) for kind in ("qwen3", "olmo2", "glm", "cohere", "olmo")),
    ],
)
def test_queries_keys_and_values_are_one_product_where_attention_is_known(kind, known, dtype):
    changes = {"glm": {"pad_token_id": 0}, "mistral": {"sliding_window": None}, "olmo": {"clip_qkv": 0.1}}
    model = made(kind, **changes.get(kind, {}))
    for name, weight in model.named_parameters():
        torch.nn.init.normal_(weight, std=0.5 if name.endswith("bias") else 0.2)
    assert attention.enable(model) is None
    plain = copy.deepcopy(model)
    with prepacked(model.to(dtype)):
        layers = [isinstance(layer.self_attn.forward, decoding._PackedAttention) for layer in model.model.layers]
        assert layers == [known, known]
        if dtype == torch.float32:
            twin = Twin(plain, SharedBatch(model))
            twin.add([PROMPTS[0], PROMPTS[0], PROMPTS[1]])
            twin.step([7, 2, 9])
            twin.add([PROMPTS[2]])
            twin.step([3, 3, 3, 3])
            # Without a pattern, too.
            twin.check(model(torch.tensor([PROMPTS[0]]), use_cache=False).logits[0, -1:], [PROMPTS[0]])
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("kind", "known", "changes"),
    [
        *((kind, True, {}) for kind in ("llama", "qwen2", "qwen3", "gemma", "granite")),
        ("mistral", True, {"sliding_window": None}),
        ("glm", True, {"pad_token_id": 0}),
        # Norms after, one norm for both.
        *((kind, False, {}) for kind in ("olmo2", "cohere")),
        *(("granite", False, {what: 0.5}) for what in ("residual_multiplier", "embedding_multiplier")),
        ("granite", False, {"logits_scaling": 0.5}),
    ],
)
def test_a_model_of_the_usual_build_is_asked_without_its_modules(kind, known, changes, dtype):
    model = made(kind, **changes).to(dtype)
    assert attention.enable(model) is None
    batches = SharedBatch(model), SharedBatch(model)

    def said(batch):
        first = batch.add([PROMPTS[0], PROMPTS[0], PROMPTS[1]])
        return torch.cat([first, *(batch.step(tokens, [True] * 3) for tokens in ([7, 2, 9], [1, 1, 4]))])

    with torch.inference_mode(), prepacked(model):
        straight = vars(model).pop("forward", None)
        assert isinstance(straight, decoding._Straight) == known
        want = said(batches[0])
        if known:
            model.forward = straight
            called = []
            model.model.layers[0].register_forward_hook(lambda *_: called.append(1))
            assert torch.equal(said(batches[1]), want)
            assert not called
            # Without a pattern it is the model's own pass.
            model(torch.tensor([PROMPTS[0]]), use_cache=False)
            assert called
    assert "forward" not in vars(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_small_weights_are_laid_out_in_narrow_types_alone(dtype):
    model = model_of("llama").to(dtype)
    narrow = dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    with prepacked(model):
        assert ("forward" in vars(model.lm_head)) == narrow


@pytest.mark.usefixtures("all_laid_out")
def test_prepacked_weights_are_those_of_the_moment():
    model = model_of("llama")
    ids = torch.arange(12)[None]
    with torch.no_grad(), prepacked(model):
        model.lm_head.weight.zero_()
        assert model(ids, use_cache=False).logits.any(), "a copy"
    with torch.no_grad(), prepacked(model):
        assert not model(ids, use_cache=False).logits.any(), "made anew"


@pytest.mark.usefixtures("all_laid_out")
def test_weights_are_laid_out_once_within_nested_blocks():
    model = model_of("llama")
    with prepacked(model):
        outer = model.lm_head.forward
        with prepacked(model):
            assert model.lm_head.forward is outer
        assert model.lm_head.forward is outer
    assert "forward" not in vars(model.lm_head)


def test_a_model_whose_turning_depends_on_the_length_trains_after_it_decoded():
    """It keeps a table that it makes while it decodes."""
    model = made("llama", max_position_embeddings=16, rope_scaling={"rope_type": "dynamic", "factor": 2.0})
    assert attention.enable(model) is None
    batch = SharedBatch(model)
    batch.add([PROMPTS[0]])
    for _ in range(20):
        batch.step([7], [True])
    packed = attention.pack([[PROMPTS[0]]])
    ids, positions = torch.tensor([packed.ids]), torch.tensor([packed.positions])
    attention.run(model, packed.pattern, ids, positions).logits.logsumexp(-1).sum().backward()
    assert all(bool(weight.grad.isfinite().all()) for weight in model.parameters())


def test_a_model_without_patterns_falls_back():
    model = model_of("llama")
    assert isinstance(open_batch(model, 0), SharedBatch)
    model.set_attn_implementation("sdpa")
    assert isinstance(open_batch(model, 0), Batch)
