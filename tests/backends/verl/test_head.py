"""A rank's own head against whole logits, rows padded, packed and shared; FSDP and verl have no part in it."""

import needs_verl  # noqa: F401
import pytest
import torch
from architectures import made

from nrt_cli.backends.verl.head import scored_tokens, use_chunked_head
from nrt_cli.backends.verl.loss import as_rows
from nrt_cli.errors import ModelError
from nrt_cli.objective.rows import Row

ROWS = [Row((5, 6, 7, 8, 9, 10), 3, (3, 5)), Row((11, 12, 13), 1, (1, 2)), Row((14, 15, 16, 17), 2, (2, 4))]
LENGTHS = [len(row.ids) for row in ROWS]


def plain(model, temperature):
    """Log-probs and entropies of the rows' scored tokens by whole logits in float32."""
    logprobs, entropies = [], []
    for row in ROWS:
        logits_TV = model(torch.tensor([row.ids])).logits[0].float()
        for i in range(row.scored_from, len(row.ids)):
            divisor = temperature if row.tempered[0] <= i < row.tempered[1] else 1.0
            table_V = (logits_TV[i - 1] / divisor).log_softmax(-1)
            logprobs.append(table_V[row.ids[i]])
            entropies.append(-(table_V.exp() * table_V).sum())
    return torch.stack(logprobs), torch.stack(entropies)


def of_responses(values_S):
    """Of a number for each token of all rows, those that are scored."""
    parts = zip(values_S.split(LENGTHS), ROWS, strict=True)
    return torch.cat([values[row.scored_from - 1 : -1] for values, row in parts])


def both(output):
    return [of_responses(output[name]) for name in ("log_probs", "entropy")]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_padded_rows_have_the_numbers_of_whole_logits(kind, dtype, temperature):
    """To the temperature's last digit: 0.7 is 0.69921875 in bfloat16."""
    model = made(kind).to(dtype)
    want = plain(model, temperature)
    use_chunked_head(model)
    batch = as_rows(ROWS, temperature, entropy=True)
    ids, mask = torch.zeros(3, 6, dtype=torch.long), torch.zeros(3, 6, dtype=torch.long)
    for i, row in enumerate(ROWS):
        ids[i, : len(row.ids)], mask[i, : len(row.ids)] = torch.tensor(row.ids), 1
    scored = scored_tokens(batch, ids.shape, packed=False)
    got = both(model(input_ids=ids, attention_mask=mask, scored=scored, use_cache=False))
    # A cap is applied to logits that were rounded to bfloat16, by us in float32.
    near = 1e-5 if dtype is torch.float32 or kind == "llama" else 0.05
    torch.testing.assert_close(got, [*want], rtol=near, atol=near)


@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_packed_rows_may_be_shared_by_ranks(ranks):
    """Each has a stretch of the packed row, padded to equal shares, and scores what lies in it, if anything does."""
    model = made("llama")
    hidden = [model.base_model(input_ids=torch.tensor([row.ids])).last_hidden_state[0] for row in ROWS]
    want = plain(model, 0.7)
    use_chunked_head(model)
    batch = as_rows(ROWS, 0.7, entropy=True)
    share = -(-sum(LENGTHS) // ranks)
    packed_SD = torch.cat([*hidden, torch.zeros(share * ranks - sum(LENGTHS), 32)])
    parts = []
    for rank in range(ranks):
        scored = scored_tokens(batch, torch.Size([1, share]), packed=True, rank=rank)
        parts.append(model.get_output_embeddings()(packed_SD[rank * share :][:share], scored))
        made_S = [values_N.new_zeros(share).index_copy(0, scored.at_N, values_N) for values_N in parts[-1]]
        parts[-1] = made_S
    got = [of_responses(torch.cat(column)[: sum(LENGTHS)]) for column in zip(*parts, strict=True)]
    torch.testing.assert_close(got, [*want], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["cohere", "granite"])
def test_a_model_that_scales_its_logits_is_refused(kind):
    changes = {"logit_scale": 0.25} if kind == "cohere" else {"logits_scaling": 8.0}
    with pytest.raises(ModelError, match="computes its logits in a way this engine does not know"):
        use_chunked_head(made(kind, **changes))


def test_experts_have_the_same_head():
    use_chunked_head(made("qwen3_moe", moe_intermediate_size=8, num_experts=3, num_experts_per_tok=2))
