"""The Hugging Face hub: a model card's metadata, and the upload of a folder. Nothing here runs unasked."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nrt_cli.errors import ConfigError, EndpointError, first_line


def card_metadata(
    name: str, scores: Sequence[Mapping[str, Any]], license: str | None, base_model: str | None, tags: Sequence[str]
) -> str:
    """The YAML that heads a model card.

    Args:
        scores: each with `benchmark`, `title`, `metric` and `score`, a share.
    """
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=score["benchmark"],
            dataset_name=score["title"],
            metric_type=score["metric"],
            metric_value=round(100 * score["score"], 2),
        )
        for score in scores
    ]
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=list(tags),
        license=license,
        base_model=base_model,
        model_name=name,
        eval_results=results or None,
    )
    text: str = data.to_yaml()
    return text


def upload(folder: Path, repo: str, private: bool, message: str) -> str:
    """Create the repository where it is missing and commit the folder to it; returns its address.

    The token is the hub library's own matter: `hf auth login`, or HF_TOKEN.

    Raises:
        ConfigError: the name is none the hub takes.
        EndpointError: the hub refuses or cannot be reached.
    """
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

    api = HfApi()
    try:
        # False is the hub's default too, but would make an existing private repository's call fail.
        address = api.create_repo(repo, private=private or None, exist_ok=True)
        api.upload_folder(repo_id=address.repo_id, folder_path=folder, commit_message=message)
    except HFValidationError as error:
        raise ConfigError(f"--repo {repo}: {error}") from None
    except OfflineModeIsEnabled:
        raise EndpointError(
            "HF_HUB_OFFLINE is set, so nothing was uploaded; unset it, or write a folder with --out."
        ) from None
    except LocalTokenNotFoundError:
        raise EndpointError("the hub does not know you; log in with `hf auth login`, or set HF_TOKEN.") from None
    except (HfHubHTTPError, httpx.HTTPError, OSError) as error:
        hint = "log in with `hf auth login` as someone who may write there, or write a folder with --out"
        raise EndpointError(
            f"{repo}: the hub took nothing ({type(error).__name__}: {first_line(error)}); {hint}."
        ) from None
    return str(address)
