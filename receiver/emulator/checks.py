"""What a real upstream would refuse of a submission, and what it would only frown at. Pure.

A refusal stands where a schema or a hard limit is documented (required members, types, ranges, the colon in `ratio`);
where the documents contradict one another, or give advice, it is a warning. `Findings.warn` collects those by a code.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn
from urllib.parse import urlsplit

from receiver.emulator.model import IMAGE_TO_VIDEO, PRO, VIDEO_TO_VIDEO, Route
from receiver.emulator.refusals import Answer, Refusal, e2, e4

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_RATIO: Final = re.compile(r"[1-9]\d*:[1-9]\d*")
_UINT32: Final = 4294967295
_OLD_SEED: Final = 999_999_999
_LONG_PROMPT: Final = 1000
_I2V_PROMPT: Final = 512
_LONG_CALLBACK: Final = 512
_LONG_URL: Final = 2048
_VERSION: Final = "2024-11-06"

Warn = list[tuple[str, str]]


class Findings(NamedTuple):
    """What was asked for: the prompt, where to call back, and what is odd about it as (code, detail)."""

    prompt: str
    callback_url: str | None
    warnings: Warn


def submission(route: Route, body: dict[str, Any], version: str | None) -> Findings:
    """Judge a submission's members and its version header.

    Raises:
        Refusal: a real upstream would not take it.
    """
    warnings: Warn = []
    _version(route, version, warnings)
    known = _KNOWN[route]
    warnings += [("unknown-member", f"{name} is not a member of {route}") for name in body if name not in known]
    return _JUDGES[route](body, warnings)


def lookup_version(version: str | None) -> Warn:
    """What is odd about a lookup's version header: optional in the schema, required in its prose."""
    warnings: Warn = []
    _version(PRO, version, warnings)
    return warnings


def _version(route: Route, version: str | None, warnings: Warn) -> None:
    if not version:
        if route != PRO:
            raise Refusal(
                e4(400, "Missing required header: X-Runway-Version"),
                code="version-missing",
                reason="X-Runway-Version is missing",
            )
        warnings.append(("version-missing", "X-Runway-Version is missing"))
    elif version != _VERSION:
        warnings.append(("version-unknown", f"X-Runway-Version {version!r} is not {_VERSION}"))


def _pro(body: dict[str, Any], warnings: Warn) -> Findings:
    callback_url = body.get("callback_url")
    if not isinstance(callback_url, str) or not is_http_url(callback_url):
        raise Refusal(
            e2(400, "callback_url_empty"),
            code="callback_url_empty",
            reason=f"callback_url must be an absolute http(s) URL, not {_short(callback_url)}",
        )
    warnings += _callback_oddities(callback_url)
    no = _no_e2
    for name in ("video", "model", "prompt"):
        _string(body, name, no)
    if not is_http_url(body["video"]):
        no("video", "must be an http(s) URL")
    options = body.get("options")
    if not isinstance(options, dict):
        no("options", "is required and must be an object")
    _options(options, warnings)
    if body["model"] not in {"gen4", "gen4_turbo"}:
        warnings.append(("model-unknown", f"model {_short(body['model'])} is not gen4"))
    return Findings(body["prompt"], callback_url, warnings)


def _options(options: Mapping[str, Any], warnings: Warn) -> None:
    strength = options.get("structure_transformation")
    if strength is not None and not _is_number(strength):
        _no_e2("options.structure_transformation", "must be a number")
    if strength is not None and not 0 <= strength <= 1:
        warnings.append(("structure_transformation-range", f"structure_transformation {strength} is not in 0..1"))
    if not isinstance(options.get("flip", False), bool):
        _no_e2("options.flip", "must be a boolean")
    if "seconds" not in options:
        warnings.append(("seconds-missing", "options.seconds is missing"))
    elif not _is_integer(options["seconds"]):
        _no_e2("options.seconds", "must be an integer")


def _video_to_video(body: dict[str, Any], warnings: Warn) -> Findings:
    no = _no_e4
    for name in ("videoUri", "promptText", "model"):
        _string(body, name, no)
    _https_or_data(body["videoUri"], "videoUri", "video", warnings)
    if _utf16(body["promptText"]) > _LONG_PROMPT:
        no("promptText", f"must be at most {_LONG_PROMPT} UTF-16 units")
    for name in ("seed", "references", "ratio", "contentModeration"):
        if name not in body:
            warnings.append((f"{name}-missing", f"{name} is required by the schema, though its example omits it"))
    _seed(body, warnings, advised=_UINT32)
    _ratio(body)
    _references(body.get("references", []), warnings)
    if "contentModeration" in body:
        moderation = body["contentModeration"]
        if not isinstance(moderation, dict) or moderation.get("publicFigureThreshold") not in {"auto", "low"}:
            no("contentModeration", 'must be {"publicFigureThreshold": "auto" | "low"}')
    if body["model"] != "gen4_aleph":
        warnings.append(("model-unknown", f"model {_short(body['model'])} is not gen4_aleph"))
    return Findings(body["promptText"], None, warnings)


def _references(references: Any, warnings: Warn) -> None:
    if not isinstance(references, list):
        _no_e4("references", "must be an array")
    for index, item in enumerate(references):
        whole = isinstance(item, dict) and item.get("type") == "image" and isinstance(item.get("uri"), str)
        if not whole:
            _no_e4(f"references[{index}]", f'must be {{"type": "image", "uri": …}}, not {_short(item)}')
        _https_or_data(item["uri"], f"references[{index}].uri", "image", warnings)
    if len(references) > 1:
        warnings.append(("references-many", "gen4_aleph takes at most one reference"))


def _image_to_video(body: dict[str, Any], warnings: Warn) -> Findings:
    no = _no_e4
    for name in ("promptImage", "model"):
        _string(body, name, no)
    _https_or_data(body["promptImage"], "promptImage", "image", warnings)
    prompt = body.get("promptText", "")
    if not isinstance(prompt, str) or _utf16(prompt) > _LONG_PROMPT:
        no("promptText", f"must be a string of at most {_LONG_PROMPT} UTF-16 units")
    if len(prompt) > _I2V_PROMPT:
        warnings.append(("promptText-long", f"promptText is over the {_I2V_PROMPT} characters CometAPI names"))
    _seed(body, warnings, advised=_OLD_SEED)
    _ratio(body)
    if not isinstance(body.get("watermark", False), bool):
        no("watermark", "must be a boolean")
    duration = body.get("duration", 5)
    if not _is_integer(duration):
        no("duration", "must be an integer")
    if duration not in {5, 10}:
        warnings.append(("duration-odd", f"duration {duration} is neither 5 nor 10"))
    if body["model"] not in {"gen3a_turbo", "gen4_turbo"}:
        warnings.append(("model-unknown", f"model {_short(body['model'])} is not gen3a_turbo"))
    return Findings(prompt, None, warnings)


def _string(body: Mapping[str, Any], name: str, no: Callable[[str, str], NoReturn]) -> None:
    if not isinstance(body.get(name), str) or not body[name]:
        no(name, "is required and must be a string")


def _seed(body: Mapping[str, Any], warnings: Warn, *, advised: int) -> None:
    seed = body.get("seed", 0)
    if not _is_integer(seed) or not 0 <= seed <= _UINT32:
        _no_e4("seed", f"must be an integer in 0..{_UINT32}")
    if seed > advised:
        warnings.append(("seed-range", f"seed {seed} is over the documented {advised}"))


def _ratio(body: Mapping[str, Any]) -> None:
    ratio = body.get("ratio", "1280:720")
    if not isinstance(ratio, str) or _RATIO.fullmatch(ratio) is None:
        _no_e4("ratio", f"must be written with a colon such as 1280:720, not {_short(ratio)}")


def _https_or_data(value: str, name: str, media: str, warnings: Warn) -> None:
    if value.startswith(f"data:{media}/"):
        limit = 16_000_000 if media == "video" else 5_000_000
        if len(value) > limit:
            warnings.append(("data-uri-large", f"{name} is a data URI over {limit} bytes"))
        return
    if not is_http_url(value):
        _no_e4(name, f"must be an https URL or a data URI, not {_short(value)}")
    if not value.lower().startswith("https://"):
        if name == "promptImage":
            warnings.append(("media-http", f"{name} is no https URL"))
        else:
            _no_e4(name, f"must be an https URL or a data URI, not {_short(value)}")
    if len(value) > _LONG_URL:
        warnings.append(("media-url-long", f"{name} is over {_LONG_URL} characters"))


def is_http_url(value: object) -> bool:
    """An absolute http(s) URL with a host."""
    if not isinstance(value, str):
        return False
    try:
        parts = urlsplit(value)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False


def _callback_oddities(url: str) -> Warn:
    parts = urlsplit(url)
    found = [*_host_oddities(parts.scheme, parts.hostname or "", parts.port)]
    if len(url) > _LONG_CALLBACK:
        found.append(("callback-url-long", f"callback_url has {len(url)} characters, over {_LONG_CALLBACK}"))
    return found


@functools.lru_cache(maxsize=256)
def _host_oddities(scheme: str, host: str, port: int | None) -> tuple[tuple[str, str], ...]:
    found = []
    if scheme != "https":
        found.append(("callback-url-http", "callback_url is no https URL"))
    if port not in {None, 80, 443}:
        found.append(("callback-url-port", f"callback_url names port {port}"))
    if _is_private(host):
        found.append(("callback-url-private", f"callback_url's host {host} cannot be reached from outside"))
    return tuple(found)


def _is_private(host: str) -> bool:
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        return "." not in host or host.endswith((".localhost", ".local", ".internal", ".invalid", ".test"))


def _no_e2(name: str, what: str) -> NoReturn:
    _refuse(e2(400, "invalid_request", f"{name} {what}"), name, what)


def _no_e4(name: str, what: str) -> NoReturn:
    _refuse(e4(400, f"Validation of body failed: {name} {what}", [f"{name} {what}"]), name, what)


def _refuse(answer: Answer, name: str, what: str) -> NoReturn:
    raise Refusal(answer, code="invalid_request", reason=f"{name} {what}")


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _utf16(text: str) -> int:
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def _short(value: object) -> str:
    text = repr(value)
    limit = 80
    return text if len(text) <= limit else f"{text[:limit]}…"


_JUDGES: Final[Mapping[Route, Callable[[dict[str, Any], Warn], Findings]]] = {
    PRO: _pro,
    VIDEO_TO_VIDEO: _video_to_video,
    IMAGE_TO_VIDEO: _image_to_video,
}
_KNOWN: Final[Mapping[Route, frozenset[str]]] = {
    PRO: frozenset({"callback_url", "video", "model", "prompt", "options"}),
    VIDEO_TO_VIDEO: frozenset({"videoUri", "promptText", "seed", "model", "references", "ratio", "contentModeration"}),
    IMAGE_TO_VIDEO: frozenset({"promptImage", "model", "seed", "promptText", "watermark", "duration", "ratio"}),
}
