"""Whether the Hugging Face hub answers: asked once, as its libraries try for most of a minute before they give up."""

import os
import sys
from functools import cache


@cache
def find_hub() -> str:
    """Why the hub cannot be asked, or nothing. Its libraries then read what is in their cache, or fail at once."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HTTPError  # of the HTTP library that the hub's package is made with
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except HTTPError:
        os.environ["HF_HUB_OFFLINE"] = "1"  # for what is imported later
        constants.HF_HUB_OFFLINE = True
        if datasets := sys.modules.get("datasets"):
            datasets.config.HF_HUB_OFFLINE = True
        return "the hub does not answer"
    return ""
