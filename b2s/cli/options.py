"""Options that several commands share, each defined once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from b2s.cli.invocation import Invocation, unknown_source
from b2s.errors import UsageError

if TYPE_CHECKING:
    from b2s.core.settings import LogSettings, Settings, SourceSettings
    from b2s.core.store_settings import S3Settings

LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_FORMATS = ("auto", "json", "console")

Function = TypeVar("Function", bound=Callable[..., Any])


def _remember(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    """Keep a global option; the one given last, after the command's name, wins."""
    if value is not None and param.name is not None:
        setattr(ctx.ensure_object(Invocation).options, param.name, value)


def global_options() -> list[click.Option]:
    """Return the options that every command takes, before or after its name."""
    return [
        click.Option(
            ["--config"],
            metavar="PATH",
            expose_value=False,
            callback=_remember,
            help="Config file.  [default: $B2S_CONFIG or /etc/b2s/config.yaml]",
        ),
        click.Option(
            ["--log-level"],
            type=click.Choice(LOG_LEVELS),
            expose_value=False,
            callback=_remember,
            help="Least important events to log.",
        ),
        click.Option(
            ["--log-format"],
            type=click.Choice(LOG_FORMATS),
            expose_value=False,
            callback=_remember,
            help="One JSON object per line, or lines for people; auto: by whether stderr is a terminal.",
        ),
    ]


class Command(click.Command):
    """A command that also takes the global options: `@click.command("name", cls=Command)`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Add the global options after the command's own."""
        super().__init__(*args, **kwargs)
        self.params.extend(global_options())


class Group(click.Group):
    """A group that also takes the global options, and so do its commands."""

    command_class = Command

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Add the global options; a call without a command is a usage error."""
        kwargs["no_args_is_help"] = False
        super().__init__(*args, **kwargs)
        self.params.extend(global_options())


source_option = click.option(
    "--source", "sources", multiple=True, metavar="NAME", help="Only this source; may be given several times."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """Where the bucket is, as given on the command line; None where it was not given."""

    bucket: str | None
    prefix: str | None
    region: str | None
    endpoint_url: str | None
    profile: str | None


@dataclass(frozen=True, slots=True)
class StoreChoice:
    """The bucket a command works on."""

    s3: S3Settings
    settings: Settings | None  # None where the command line names the bucket: no config file was read then
    log: LogSettings  # in force


def store_options(function: Function) -> Function:
    """Add `--bucket --prefix --region --endpoint-url --profile`; the function gets them as `store: StoreOptions`."""

    @functools.wraps(function)
    def bundled(*args: Any, **kwargs: Any) -> Any:
        names = ("bucket", "prefix", "region", "endpoint_url", "profile")
        return function(*args, store=StoreOptions(**{name: kwargs.pop(name) for name in names}), **kwargs)

    for option in (
        click.option("--profile", metavar="NAME", help="Profile of ~/.aws; with --bucket."),
        click.option("--endpoint-url", metavar="URL", help="S3-compatible store; with --bucket."),
        click.option("--region", metavar="NAME", help="Region of the bucket; with --bucket."),
        click.option("--prefix", metavar="PREFIX", help="What the keys begin with; with --bucket."),
        click.option("--bucket", metavar="NAME", help="Work on this bucket and read no config file."),
    ):
        bundled = option(bundled)
    return bundled  # type: ignore[return-value]


def store_from(invocation: Invocation, options: StoreOptions) -> StoreChoice:
    """Return the bucket that the options name, or else the config file; starts the log.

    Raises:
        ConfigError: No bucket was named and the config file is missing or wrong.
        UsageError: An option is wrong, or makes no sense without `--bucket`.
    """
    given = {
        name: getattr(options, name)
        for name in ("bucket", "prefix", "region", "endpoint_url", "profile")
        if getattr(options, name) is not None
    }
    if options.bucket is None:
        if given:
            name = next(iter(given)).replace("_", "-")
            raise UsageError(f"--{name} needs --bucket", hint="name the bucket too, or leave both to the config file")
        settings = invocation.settings(check_host=False)
        return StoreChoice(settings.s3, settings, settings.log)

    from pydantic import ValidationError

    from b2s.adapters.config_problems import explain_store_option
    from b2s.core.store_settings import S3Settings

    try:
        s3 = S3Settings(**given)
    except ValidationError as error:
        problems = [explain_store_option(each) for each in error.errors(include_url=False, include_context=False)]
        raise UsageError("\n".join(problems)) from None
    return StoreChoice(s3, None, invocation.start_log())


def chosen_sources(settings: Settings, names: tuple[str, ...]) -> tuple[SourceSettings, ...]:
    """Return the sources that `--source` names, in the order of the config file; all where it names none.

    Raises:
        UsageError: A name is not in the config file.
    """
    known = [source.name for source in settings.sources]
    for name in names:
        if name not in known:
            raise unknown_source(name, known)
    return tuple(source for source in settings.sources if not names or source.name in names)
