"""A stand-in for a model behind transformers: no weights, words are tokens."""


class Tokenizer:
    """Words are tokens; those in <||> are special."""

    def __call__(self, text, add_special_tokens=True):
        return type("Encoded", (), {"input_ids": text.split()})

    def decode(self, tokens, skip_special_tokens):
        kept = [t for t in tokens if not (skip_special_tokens and t.startswith("<|"))]
        return " ".join(kept)


class HFLM_Verbose:  # noqa: N801  as OLMES calls it
    def __init__(self, folder):
        self.tokenizer = Tokenizer()

    def tok_decode(self, tokens, skip_special_tokens=True):
        return self.tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens)

    def say(self, prompt, kind, number):
        """Thinks where it is asked to; every third time it never stops thinking of 7, or answers wrongly."""
        if prompt.endswith("<|think_start|>"):
            words = "two and five <|think_end|> It is 7 ." if number % 3 != 2 else " ".join(["seven 7"] * 10)
            if kind == "hf":
                # transformers hands back the token that it stopped at too, and padding.
                words += " <eos> 8 8"
        else:
            words = "It is 7 ." if number % 3 != 2 else "It is 8 ."
        return self.tok_decode(words.split()) if kind == "hf" else words
