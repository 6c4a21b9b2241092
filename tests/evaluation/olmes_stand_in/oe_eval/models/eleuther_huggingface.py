"""A stand-in for a model behind transformers: no weights, words are tokens."""


class Tokenizer:
    """Words are tokens; those in <||> are special."""

    def __call__(self, text, add_special_tokens=True):
        return type("Encoded", (), {"input_ids": text.split()})

    def convert_tokens_to_ids(self, token):
        return token

    def encode(self, text, add_special_tokens):
        return text.split()

    def decode(self, tokens, skip_special_tokens):
        kept = [t for t in tokens if not (skip_special_tokens and t.startswith("<|"))]
        return " ".join(kept)


class Model:
    """Thinks where it is asked to; every third time it never stops thinking of 7, or answers wrongly.

    Its thoughts have the string in them at which answers stop, as a blank line is in OLMES's PopQA.
    """

    max_length = 100

    def __init__(self, folder):
        self.tokenizer = Tokenizer()

    def generate_until_verbose(self, requests):
        return [self.say(request) for request in requests]

    def say(self, request):
        prompt, late = request.context, "What is 2 +" in request.context
        asked = request.generation_kwargs
        if not prompt.endswith("<|think_start|>"):
            forbidden = asked.get("suppress_tokens") or asked.get("logit_bias")
            assert set(forbidden) == {"<|think_start|>", "<|think_end|>"}, "an answer may think"
        thinks, answers = prompt.endswith("<|think_start|>"), "<|think_end|>" in prompt
        if thinks:
            words = "two ; five <|think_end|> It is 7 ; no, 8" if not late else " ".join(["seven 7"] * 40)
        else:
            words = "It is 7 ; no, 8" if not late or (answers and "Answer:" in prompt) else "It is 8 ; no, 7"
        tokens = [*words.split(), "<eos>", "8", "8"][: request.generation_kwargs["max_gen_toks"]]
        raw = self.finish(tokens)
        text = raw
        for stop in [*request.stop_sequences, "<eos>"]:
            text = text.partition(stop)[0]
        return {"continuation": text, "num_tokens": len(tokens)} | ({"continuation_raw": raw} if raw != text else {})


class HFLM_Verbose(Model):  # noqa: N801  as OLMES calls it
    def tok_decode(self, tokens, skip_special_tokens=True):
        return self.tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens)

    def finish(self, tokens):
        """transformers hands back the token that it stopped at too, and padding."""
        return self.tok_decode(tokens)
