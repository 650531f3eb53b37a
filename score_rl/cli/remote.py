"""The options of commands that ask a model behind an endpoint, and what they make."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from score_rl.errors import ConfigError

if TYPE_CHECKING:
    from score_rl.endpoint import EndpointPlayer
    from score_rl.schema import Settings
    from score_rl.tracking import Screen

Endpoint = Annotated[
    str | None,
    typer.Option(metavar="URL", help="Ask the model of that name at an OpenAI-compatible endpoint; docs/endpoints.md."),
]
Concurrency = Annotated[int | None, typer.Option(min=1, help="Episodes the endpoint plays at once; 16 by default.")]
Retries = Annotated[
    int | None, typer.Option(min=0, help="How often it is asked again where it fails; 10 by default, about a minute.")
]


def endpoint_player(
    settings: Settings, url: str | None, concurrency: int | None, retries: int | None, screen: Screen
) -> EndpointPlayer | None:
    """What plays with `settings.model.path` as the endpoint's name for the model; None without a URL.

    Raises:
        ScoreError: nothing answers there, or a setting that an endpoint cannot follow.
    """
    if url is None:
        for option, value in (("--concurrency", concurrency), ("--retries", retries)):
            if value is not None:
                raise ConfigError(f"{option} {value}: is for an endpoint; give --endpoint URL, or leave it out")
        return None
    from score_rl.endpoint import EndpointPlayer
    from score_rl.grading import make_grader

    limit, chosen = settings.chat.max_prompt_tokens, {"concurrency": concurrency, "retries": retries}
    player = EndpointPlayer(
        url,
        settings.model.path,
        settings.chat,
        make_grader(settings.reward),
        **{name: value for name, value in chosen.items() if value is not None},
    )
    player.check()
    if limit is not None:
        screen.say(f"chat.max_prompt_tokens={limit}: tokens are the endpoint's business; no problem is left out")
    return player
