"""A stand-in for a model behind vLLM, which keeps special tokens and ends with what it stopped at."""

from oe_eval.models.eleuther_huggingface import Model


class VLLM_Verbose(Model):  # noqa: N801  as OLMES calls it
    def finish(self, tokens):
        return self.tokenizer.decode(tokens, skip_special_tokens=False).partition("<eos>")[0]
