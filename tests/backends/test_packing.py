"""Packed rows against padded ones: log-probs, entropies and every gradient, for four architectures."""

from functools import partial

import pytest
import torch
from architectures import made
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from nrt_cli.backends.local import attention
from nrt_cli.backends.local import policy as policy_module
from nrt_cli.backends.local.attention import FlexSegments, Packed, Segment, Segments, pack, packed_amounts, within
from nrt_cli.backends.local.policy import Policy
from nrt_cli.objective.rows import Row, by_prompt

ARCHITECTURES = {
    "llama": {},
    "llama-tied": {"tie_word_embeddings": True},
    "mistral": {"sliding_window": None},
    "qwen3": {},
    "gemma": {},
}


def model_of(name):
    return made(name.partition("-")[0], seed=1, **ARCHITECTURES[name])


def rows_of(lengths, prompt=7, prompts=1, seed=0):
    """Rows of random tails of the given lengths after each of some prompts."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda n: tuple(torch.randint(3, 60, (n,), generator=generator).tolist())  # noqa: E731
    heads = [draw(prompt + i) for i in range(prompts)]
    return [Row((*x, *draw(n)), len(x), (len(x), len(x) + n // 2)) for x in heads for n in lengths]


def truncated(length, prompt=7):
    """A row, and others that leave it further and further to its beginning, each for tokens of its own; one at once."""
    (whole,), others = rows_of([length], prompt), rows_of([3, 1, 4, 2, 5], prompt=2, seed=1)
    at = (length - 1, 3 * length // 4, length // 3, length // 3, 0)
    cut = [whole.ids[: prompt + n] + other.ids for n, other in zip(at, others, strict=True)]
    return [whole, *(Row(ids, prompt) for ids in cut)]


def scores(model, rows, packing):
    """Log-probs, entropies and gradients of a weighted sum of both."""
    policy = Policy(model, pad_id=0, temperature=0.8, packing=packing)
    assert policy.packing == packing
    logprobs, entropies = policy.score(rows)
    weights = torch.linspace(-1, 2, len(logprobs))
    model.zero_grad()
    ((weights * logprobs).sum() + (weights.flip(0) * entropies).sum()).backward()
    return logprobs, entropies, {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize(
    "rows",
    [
        rows_of([5, 1, 9, 3]),
        rows_of([6]),
        rows_of([4, 4], prompts=3),
        rows_of([3, 8, 2], prompt=1, prompts=2),
        [*rows_of([5, 2]), *rows_of([5, 2])[:1]],
        [*truncated(12), *rows_of([4, 4], prompt=5)],
    ],
    ids=["ragged", "one row", "several prompts", "prompt of one token", "the same row twice", "truncations"],
)
def test_packed_equals_padded(name, rows):
    model = model_of(name)
    packed, padded = scores(model, rows, True), scores(model_of(name), rows, False)
    torch.testing.assert_close(packed[0], padded[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(packed[1], padded[1], rtol=1e-5, atol=1e-5)
    for parameter, gradient in padded[2].items():
        size = max(1.0, float(gradient.abs().max()))
        torch.testing.assert_close(packed[2][parameter], gradient, rtol=0, atol=1e-5 * size, msg=parameter)


@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_attention_without_order_equals_its_formula(dtype, near):
    """Among them keys whose first blocks of 512 are hidden whole, as those before a row that joined late are."""
    dice = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(3, 2, n, 16, generator=dice, dtype=dtype) for n in (5, 1300, 1300))
    places = torch.arange(1300)
    hidden = torch.stack([places < 1299, places >= 700, places < 530])
    for some in (None, hidden):
        scores, mask = 0.3 * query.double() @ key.double().mT, None
        if some is not None:
            scores, mask = scores.masked_fill(some[:, None, None], float("-inf")), attention.hiding(some, dtype)
        out, sums = attention.unordered(query, key, value, mask, 0.3)
        assert (out.dtype, sums.dtype) == (dtype, torch.promote_types(dtype, torch.float32))
        torch.testing.assert_close(out.double(), scores.softmax(-1) @ value.double(), rtol=near, atol=near)
        torch.testing.assert_close(sums.double(), scores.logsumexp(-1), rtol=near, atol=near)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("budget", [1, 17, 24, 31, 1000])
@pytest.mark.parametrize("anywhere", [False, True], ids=["kernel", "anywhere"])
def test_rows_behind_a_prefix_equal_padded(name, budget, anywhere, monkeypatch):
    """Two prompts whose rows do not fit: what each begins with is read once, and gets the gradient of all its parts."""
    if anywhere:
        monkeypatch.delattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu")
    rows = [*rows_of([5, 1, 9, 3], prompt=12, prompts=2), *rows_of([6], seed=4)]
    rows.insert(2, Row(rows[0].ids[:13], 12))  # one that another begins with
    padded = scores(model_of(name), rows, False)
    policy = Policy(model_of(name), 0, 0.8, packing=True)
    said, prefixes, end = [], set(), 0
    weights = torch.linspace(-1, 2, len(padded[0]))
    policy.model.zero_grad()
    for part, prefix in policy.passes(rows, budget):
        logprobs, entropies = policy.score(part, prefix)
        start, end = end, end + len(logprobs)
        (weights[start:end] * logprobs).sum().backward(retain_graph=True)
        (weights.flip(0)[start:end] * entropies).sum().backward()
        said.append((logprobs, entropies))
        prefixes.add(prefix)
    for prefix in prefixes - {None}:
        prefix.backward()
    for got, want in zip(map(torch.cat, zip(*said, strict=True)), padded, strict=False):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    for parameter, weight in policy.model.named_parameters():
        gradient = padded[2][parameter]
        size = max(1.0, float(gradient.abs().max()))
        torch.testing.assert_close(weight.grad, gradient, rtol=0, atol=1e-5 * size, msg=parameter)
    quiet = policy.score_without_gradient(rows, budget)
    torch.testing.assert_close(torch.cat([one for one, _ in quiet]), padded[0], rtol=1e-5, atol=1e-5)


def test_a_long_prompt_is_read_once():
    """2 prompts of 40 tokens, 4 rows of 10 after each, a budget of 30: 8 passes of rows, and 2 of prompts."""
    policy, read = Policy(model_of("llama"), 0, packing=True), []
    rows = rows_of([10] * 4, prompt=40, prompts=2)
    layers = policy.model.base_model.layers[0]
    layers.register_forward_hook(lambda layer, given, out: read.append(given[0].shape[1]))
    policy.score_without_gradient(rows, 30)
    assert read == [40, 9, 9, 9, 9, 41, 9, 9, 9, 9]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_packed_bfloat16_is_as_near_to_float32_as_padded_bfloat16_is(name):
    rows = rows_of([5, 1, 9, 3], prompts=3)
    narrow = lambda packing: scores(model_of(name).bfloat16(), rows, packing)  # noqa: E731
    truth, packed, padded = scores(model_of(name), rows, False), narrow(True), narrow(False)
    for part in (0, 1):
        errors = [(found[part] - truth[part]).abs().mean() for found in (packed, padded)]
        assert 0 < errors[0] < 1.5 * errors[1]
    runs = (truth, packed, padded)
    whole, *narrow_ones = (torch.cat([grad.float().flatten() for grad in run[2].values()]) for run in runs)
    errors = [(gradient - whole).norm() for gradient in narrow_ones]
    assert 0 < errors[0] < 1.5 * errors[1]


def test_a_group_of_rows_is_laid_out_as_drawn():
    packed = pack([[(1, 2, 3, 4), (1, 2, 5)], [(7, 8)]])
    assert packed.ids == [1, 2, 3, 4, 5, 7, 8]
    assert packed.positions == [0, 1, 2, 3, 2, 0, 1]
    assert packed.at == [[0, 1, 2, 3], [0, 1, 4], [5, 6]]
    assert [(s.prefix, s.tails) for s in packed.pattern.segments] == [((0, 2), ((2, 4), (4, 5))), ((5, 7), ())]
    assert packed_amounts([(1, 2, 3, 4), (1, 2, 5)])[0] == 5


def test_what_rows_leave_at_different_places_is_laid_out_once():
    """Five truncations of twelve tokens, with an end of their own: 12 + 5, where 5 x 13 would stand side by side."""
    whole = tuple(range(1, 13))
    rows = [whole, *((*whole[:n], 99) for n in (11, 9, 5, 1))]
    packed = pack([rows, [(7, 8)]])
    assert packed.ids == [*whole, 99, 99, 99, 99, 7, 8]
    assert packed.positions[12:16] == [11, 9, 5, 1]
    assert packed.at[3] == [0, 1, 2, 3, 4, 14]
    first, second = packed.pattern.segments
    assert (first.prefix, first.sees) == ((0, 12), (11, 9, 5, 1))
    assert first.tails == ((12, 13), (13, 14), (14, 15), (15, 16))
    assert (second.prefix, second.tails) == ((16, 18), ())
    assert packed_amounts(rows) == (16, 12 * 13 // 2 + 12 + 10 + 6 + 2)


@torch.no_grad()
def test_rows_along_one_that_fit_no_pass_are_laid_out_along_the_first_of_each():
    rows = truncated(40)
    policy, alone = Policy(model_of("llama"), 0, packing=True), Policy(model_of("llama"), 0)
    assert policy.size(rows) > 50
    assert {prefix for _, prefix in policy.passes(rows, 50)} == {None}
    for found, want in zip(policy.score_without_gradient(rows, 50), alone.score_without_gradient(rows), strict=True):
        torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-5)


def test_rows_are_cut_into_runs_of_one_prompt():
    a, b = rows_of([3, 2], prompts=2, seed=5)[:2], rows_of([3, 2], prompts=2, seed=6)[:1]
    assert list(by_prompt([*a, *b])) == [a, b]


def test_micro_batches_count_what_is_computed():
    """4 rows of 7 + 3 tokens: 40 padded, 7 + 4 x 2 = 15 packed, since the last token of a row predicts nothing."""
    rows = rows_of([3, 3, 3, 3])
    packed, padded = Policy(model_of("llama"), 0, packing=True), Policy(model_of("llama"), 0)
    assert (packed.size(rows), padded.size(rows)) == (15, 40)
    assert [len(part) for part in packed.micro_batches(rows, 15)] == [4]
    assert [len(part) for part in packed.micro_batches(rows, 14)] == [3, 1]
    assert [len(part) for part in padded.micro_batches(rows, 20)] == [2, 2]
    assert [len(part) for part in padded.micro_batches(rows, 5)] == [1, 1, 1, 1]


def test_sliding_windows_and_capped_scores_are_padded_instead():
    window = made("mistral", sliding_window=4)
    capped = made("gemma2")
    assert "everything before" in attention.enable(window)
    assert "capped" in attention.enable(capped)
    assert not Policy(window, 0, packing=True).packing
    # What is sent down the padded path is still right: log-probs of the model itself.
    rows = rows_of([6, 9])
    logprobs, _ = Policy(window, 0, packing=True).score(rows)
    alone = [window(torch.tensor([r.ids])).logits[0].log_softmax(-1) for r in rows]
    want = [
        table[t - 1, r.ids[t]] for r, table in zip(rows, alone, strict=True) for t in range(r.scored_from, len(r.ids))
    ]
    torch.testing.assert_close(logprobs, torch.stack(want), rtol=1e-5, atol=1e-5)


def _no_join(monkeypatch):
    """Tails to their prefix and no further."""
    monkeypatch.setattr("nrt_cli.backends.local.attention.join", lambda out, sums, part, part_sums: (out, sums))


def _one_segment(monkeypatch):
    """Every token sees all before it, other rows' tails among them."""

    def whole(packed):
        end = packed.pattern.segments[0].prefix[1]
        others = ((end, len(packed.ids)),) if end < len(packed.ids) else ()
        return Segments((Segment((0, end), others, (end,) * len(others)),))

    _repack(monkeypatch, lambda packed: Packed(packed.ids, packed.positions, whole(packed), packed.at))


def _no_positions(monkeypatch):
    """Positions run on through the packed row."""
    _repack(monkeypatch, lambda packed: Packed(packed.ids, list(range(len(packed.ids))), packed.pattern, packed.at))


def _repack(monkeypatch, change):
    monkeypatch.setattr(policy_module, "pack", lambda *given: change(pack(*given)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fault", [_no_join, _one_segment, _no_positions])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_self_check_finds_wrong_packing_and_goes_on_padded(name, fault, dtype, monkeypatch):
    model = model_of(name).to(dtype)
    rows = rows_of([5, 1, 9, 3], prompts=2)
    want, _ = Policy(model, 0).score(rows)
    assert Policy(model, 0, packing=True).packing
    fault(monkeypatch)
    policy = Policy(model, 0, packing=True)
    assert not policy.packing
    assert "nats on average, and rounding explains" in policy.no_packing
    torch.testing.assert_close(policy.score(rows)[0], want)


def test_a_model_that_names_a_type_is_checked_in_its_own():
    """Its layers cannot be computed in a wider one."""

    class Named(nn.Module):
        def forward(self, x):
            return x @ torch.eye(x.shape[-1], dtype=torch.bfloat16)

    model = model_of("llama").bfloat16()
    model.model.layers[0].mlp = Named()
    policy = Policy(model, 0, packing=True)
    assert policy.packing
    assert all(weight.dtype == torch.bfloat16 for weight in model.parameters())
    padded = scores(model, rows_of([5, 3]), False)
    torch.testing.assert_close(scores(model, rows_of([5, 3]), True)[0], padded[0], rtol=0, atol=0.1)


@pytest.mark.parametrize("fault", [_no_join, _one_segment])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_real_rows_find_what_the_first_ones_did_not(fault, dtype, monkeypatch):
    policy = Policy(model_of("llama").to(dtype), 0, packing=True)
    rows = rows_of([12, 7], prompt=10)
    assert policy.verify_packing(rows)
    assert policy.no_packing is None
    fault(monkeypatch)
    assert not policy.verify_packing(rows)
    assert not policy.packing
    assert policy.size(rows) == 2 * 22


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(1, 200), st.booleans())
def test_parts_are_the_longest_that_fit_in_order(sizes, budget, padded):
    size = lambda part: len(part) * max(part) if padded else sum(part)  # noqa: E731
    parts = [*within(sizes, budget, size)]
    assert [each for part in parts for each in part] == sizes
    for part, after in zip(parts, [*parts[1:], None], strict=True):
        assert size(part) <= budget or len(part) == 1
        assert after is None or size([*part, after[0]]) > budget


def test_splitting_looks_at_each_row_a_few_times():
    """Not at all before it each time: 100 parts of 100 rows each are 500,000 rows that way."""
    looked = []
    parts = [*within(range(10_000), 100, lambda part: looked.append(len(part)) or len(part))]
    assert [len(part) for part in parts] == [100] * 100
    assert sum(looked) < 100_000


def test_rounding_is_no_fault_however_much_of_it_there_is():
    """Large activations, as trained models have: bfloat16 moves log-probs by more than a limit in nats would allow."""
    model = model_of("llama")
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(8)
    rows = rows_of([12, 7, 9], prompt=10)
    truth, _ = Policy(model, 0).score(rows)
    policy = Policy(model.bfloat16(), 0, packing=True)
    assert (policy.score(rows)[0] - truth).abs().mean() > 0.1
    assert policy.verify_packing(rows)


@torch.no_grad()
def test_one_kernel_with_a_block_mask_sees_the_same():
    """The GPU's pattern, run uncompiled on the CPU: every layer of two segments, one of them without tails."""
    branching = [row.ids for row in truncated(12)]
    packed = pack([[(1, 2, 3, 4), (1, 2, 5), (1, 2, 3, 9, 9)], [(7, 8)], branching, [(4, 4, 4, 6), (4, 5)]])
    assert len(set(packed.pattern.segments[2].sees)) > 2
    model = model_of("llama")
    assert attention.enable(model) is None
    inputs = torch.tensor([packed.ids]), torch.tensor([packed.positions])
    flex = FlexSegments(packed.pattern, len(packed.ids), torch.device("cpu"))
    got, want = (attention.run(model, pattern, *inputs).logits for pattern in (flex, packed.pattern))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("starts", "trained"), [(True, False), (False, False), (True, True)])
def test_on_a_gpu_the_one_kernel_is_taken_where_it_agrees_and_goes_back(starts, trained, monkeypatch):
    """This CPU's has no backward pass, so what is trained here takes the segments."""

    said = []

    class Elsewhere(FlexSegments):
        def __init__(self, *args):
            if not starts:
                raise RuntimeError("no Triton here")
            super().__init__(*args)

    monkeypatch.setattr(policy_module, "FlexSegments", Elsewhere)
    monkeypatch.setattr(policy_module, "_has_one_kernel", lambda device: True)
    policy = Policy(model_of("llama").requires_grad_(trained), 0, packing=True)
    assert policy.packing
    assert policy.flex == (starts and not trained)
    policy.say = said.append
    policy.tell_of_kernel()
    why = "does not support backward on CPU" if starts else "no Triton here"
    assert [why in text for text in said] == [True] * (not policy.flex)


@torch.no_grad()
def test_a_kernel_that_sees_wrongly_beyond_a_block_is_not_taken(monkeypatch):
    """The first block, of 128 tokens, is right."""

    class Wrong(FlexSegments):
        def attend(self, layer, query, key, value, scaling):
            out = super().attend(layer, query, key, value, scaling)
            out[:, :, 128:] *= 0.5
            return out

    monkeypatch.setattr(policy_module, "FlexSegments", Wrong)
    monkeypatch.setattr(policy_module, "_has_one_kernel", lambda device: True)
    policy = Policy(model_of("llama").requires_grad_(False), 0, packing=True)
    assert (policy.packing, policy.flex) == (True, False)
    assert "nats on average, and rounding explains" in policy.no_flex


@torch.no_grad()
def test_the_kernel_is_compiled_for_any_length_and_never_left_uncompiled_in_silence(monkeypatch):
    """At torch's limit the other packed way goes on, and it is said; here with graphs alone, which need no compiler."""
    graphs, said = [], []
    compile = partial(torch.compile, backend=lambda graph, _: graphs.append(graph) or graph)
    monkeypatch.setattr(torch, "compile", compile)
    kernel = attention.compiled.__wrapped__()
    attend = lambda self, layer, q, k, v, scale: kernel(q, k, v, block_mask=self.mask, scale=scale, enable_gqa=True)  # noqa: E731
    monkeypatch.setattr(FlexSegments, "attend", attend)
    monkeypatch.setattr(policy_module, "_has_one_kernel", lambda device: True)
    policy = Policy(model_of("llama").requires_grad_(False), 0, packing=True)
    assert policy.flex, policy.no_flex
    for prompt in (7, 90, 120, 131, 160):
        rows = rows_of([12, 7], prompt=prompt)
        assert policy.verify_packing(rows)
    assert len(graphs) == 2, "for one block of 128 tokens and for more"
    torch._dynamo.reset()
    policy.say = said.append
    with torch._dynamo.config.patch(recompile_limit=1):
        policy.score(rows_of([12, 7], prompt=10))
        assert not said
        want = policy.score(rows)
    assert not policy.flex
    assert "since FlexAttention cannot be compiled for" in said[0]
    torch.testing.assert_close(policy.score(rows), want)


@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("piece", "threads"), [(attention.PIECE, 1), (16, 2), (1, 4)])
def test_the_cpu_kernel_equals_documented_attention_with_gradients(
    heads, key_heads, dtype, piece, threads, monkeypatch
):
    """Tails of 1 to 70 tokens, a prefix of 1, one without tails, and one of which its tails see more and less; in one
    piece each and in several; with as many threads as heads, and more."""
    monkeypatch.setattr(attention, "PIECE", piece)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)  # by which queries are cut
    groups = [
        [row.ids for row in truncated(30)],
        [tuple(range(50)) + tuple(range(100 + n, 100 + 2 * n)) for n in (3, 70, 1)],
        [(1, 2, 3)],
        [(7, 8), (7, 9, 9)],
    ]
    packed = pack(groups)
    generator = torch.Generator().manual_seed(0)
    shape = lambda h: (1, h, len(packed.ids), 16)  # noqa: E731
    wide = [torch.randn(shape(h), generator=generator, dtype=torch.float64) for h in (heads, key_heads, key_heads)]
    weights = torch.randn(shape(heads), generator=generator, dtype=torch.float64)

    def run(attend, dtype):
        inputs = [tensor.to(dtype).requires_grad_() for tensor in wide]
        out = attend(*inputs, 0.3)
        return [out, *torch.autograd.grad((out * weights.to(dtype)).sum(), inputs)]

    want = run(packed.pattern.attend_anywhere, torch.float64)
    got = run(lambda q, k, v, scale: packed.pattern.attend(0, q, k, v, scale), dtype)
    tolerance = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 0.2}[dtype]
    for fast, slow in zip(got, want, strict=True):
        assert fast.dtype == dtype
        torch.testing.assert_close(fast.double(), slow, rtol=0, atol=tolerance * max(1.0, slow.abs().max().item() / 10))


def test_what_is_causal_goes_in_pieces_that_see_those_before_them(monkeypatch):
    monkeypatch.setattr(attention, "PIECE", 4)
    segments = [Segment((0, 10), ((10, 12), (12, 17)), (10, 10)), Segment((17, 20))]
    pieces = [(slice(4, 8), slice(0, 4)), (slice(8, 10), slice(0, 8)), (slice(16, 17), slice(12, 16))]
    both_tails = (slice(10, 17), slice(0, 10))
    assert attention._stretches(segments, 0) == ([4, 4, 2, 2, 4, 1, 3], [*pieces, both_tails])
    # Behind a prefix of 10 that asks nothing, queries are counted from its end.
    behind = [(slice(6, 7), slice(12, 16)), (slice(0, 7), slice(0, 10))]
    assert attention._stretches(segments[:1], 10) == ([2, 4, 1], behind)


def test_rows_with_nothing_in_common_attend_to_themselves():
    packed = pack([[(1, 2, 3), (4, 5)]])
    assert packed.pattern.segments[0].prefix == (0, 0)
    tensors = torch.randn(3, 1, 2, 5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    got = packed.pattern.attend(0, *tensors, 0.5)
    torch.testing.assert_close(got, packed.pattern.attend_anywhere(*tensors, 0.5))


def test_heads_whose_values_are_narrower_than_their_keys_are_padded():
    config = {
        "moe_intermediate_size": 16, "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
        "n_group": 1, "topk_group": 1, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4, "v_head_dim": 6, "head_dim": 4, "first_k_dense_replace": 1,
    }  # fmt: skip
    policy = Policy(made("deepseek_v3", **config), 0, packing=True)
    assert policy.no_packing == "its values may be narrower than its keys"
    assert not policy.packing
