"""A broker's URL, taken apart and checked; nothing of it that is secret is ever shown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from urllib.parse import parse_qsl, quote, unquote, unquote_plus, urlsplit

import attrs

HIDDEN = "***"

_SECRET = re.compile("pass|secret|token|key|credential|oauthbearer", re.IGNORECASE)
_SECRETS_OF_ANY = (
    # A path has one slash of the two. A password may have blanks and an @; those of examples are none.
    (re.compile(r"(:/++)(?!user:password@|SECRET@).*@"), rf"\1{HIDDEN}@"),
    (re.compile(r"(:/+)[^@]*\.\.\."), rf"\1{HIDDEN}"),
    (re.compile(r"(:/+[^\s'\"?]*\?)[^\s'\"]+"), rf"\1{HIDDEN}"),
)


@attrs.frozen
class Form:
    """What the URLs of one kind of broker look like."""

    example: str
    """Such a URL, with the port that is meant where none is given; errors quote it."""
    target: str
    """What may stand after the host, decoded: a regular expression."""
    options: str | None = ""
    """The names that may stand after the `?`, with blanks between; None: any."""
    named: str = ""
    """What stands after the host; "the topic to publish to" and the like, unless given."""
    authenticates: bool = True
    """Whether it knows users, so that one may stand before the host."""
    many_hosts: bool = False
    """Whether several hosts may be given, with commas between them."""


def of_redis(form: Form) -> dict[str, Form]:
    """The URLs of Redis, with and without TLS: of one server, of a cluster, and of a sentinels' service."""
    *_, last = form.example.split("/")
    cluster = attrs.evolve(  # which has one database
        form,
        example=f"redis+cluster://host:6379/{last}",
        options=" ".join(name for name in (form.options or "").split() if name != "db"),
        many_hosts=True,
    )
    sentinels = attrs.evolve(
        form,
        example=f"redis+sentinel://host:26379/SERVICE/{last}",
        named=f"the service, and {form.named}",
        target=rf"[^\s/]+/{form.target}",
        many_hosts=True,
    )
    kinds = {"": form, "+cluster": cluster, "+sentinel": sentinels}
    return {f"{scheme}{kind}": one for kind, one in kinds.items() for scheme in ("redis", "rediss")}


@attrs.frozen
class Address:
    """Where a broker is, and what to publish to."""

    scheme: str
    hosts: tuple[tuple[str, int], ...]
    target: str
    username: str | None = attrs.field(default=None, repr=False)
    password: str | None = attrs.field(default=None, repr=False)
    options: Mapping[str, str] = attrs.field(factory=dict, repr=False)

    @property
    def place(self) -> str:
        """The hosts and their ports, as they stand in a URL."""
        return ",".join(host_and_port(host, port) for host, port in self.hosts)

    @property
    def host(self) -> str:
        """The first host."""
        return self.hosts[0][0]

    @property
    def port(self) -> int:
        """The port of the first host."""
        return self.hosts[0][1]

    def count(self, option: str, default: int, most: int = 10**12) -> int:
        """An option that is a whole number from 0 to `most`. Raises a `ValueError` that names it."""
        text = self.options.get(option, f"{default}")
        if not re.fullmatch("[0-9]{1,13}", text) or int(text) > most:
            raise ValueError(f"{option} must be a whole number up to {most}, as in ?{option}={default}")
        return int(text)

    def choice(self, option: str, *choices: str) -> str | None:
        """An option that is one of these, or None where it is not given. Raises a `ValueError`."""
        text = self.options.get(option)
        if text is not None and text not in choices:
            raise ValueError(f"{option} must be {' or '.join(choices)}, as in ?{option}={choices[0]}")
        return text


class _WrongPort(ValueError):
    """The port is none. Nothing is said of it: it may be a part of a password."""


def parse(url: str, forms: Mapping[str, Form], or_be: str = "") -> Address:
    """Take a URL apart, by the form of its scheme; `or_be` is what else it might be.

    Raises a `ValueError` that says what is wrong, and nothing that may be secret.
    """
    if not isinstance(url, str):
        raise TypeError(f"url must be a string, not {type(url).__name__}")
    scheme = url.partition(":")[0].lower()
    form = forms.get(scheme)
    if form is None or not url[len(scheme) :].startswith("://"):
        known = ", ".join(f"{known}://" for known in forms)
        raise ValueError(f"url must begin with one of {known}{or_be}")
    like = f"like {form.example}"
    try:
        parts = urlsplit(url)
        user, at, hosts = parts.netloc.rpartition("@")
        name, colon, password = user.partition(":")
        # A surrogate can't be sent, and `urlsplit` drops line breaks and tabs. In a password `/` must be
        # %2F, or what follows is taken for the path.
        if not url.isprintable() or parts.fragment or ("@" in parts.path and not at):
            raise ValueError(url)
        address = Address(
            scheme,
            tuple(_host(text, form) for text in (hosts.split(",") if form.many_hosts else [hosts])),
            unquote(parts.path[1:], errors="strict"),
            unquote(name, errors="strict") if at else None,
            unquote(password, errors="strict") if colon else None,
            dict(parse_qsl(parts.query, strict_parsing=True, keep_blank_values=True)) if parts.query else {},
        )
    except _WrongPort:
        raise ValueError(f"url must have a port from 1 to 65535, {like}") from None
    except ValueError:
        # What the exception says may be a part of a password.
        raise ValueError(f"url must be a broker's, {like}") from None
    if not all(host for host, _ in address.hosts):
        raise ValueError(f"url must name a host, {like}")
    if not re.fullmatch(form.target, address.target):
        named = form.named or f"the {form.example.rpartition('/')[2].lower()} to publish to"
        raise ValueError(f"url must end with {named}, {like}")
    if not form.authenticates and at:
        raise ValueError(f"url can't have a user: {scheme}:// knows none, {like}")
    known_options = sorted(address.options if form.options is None else form.options.split())
    if unknown := ", ".join(sorted(address.options.keys() - known_options)):
        known = ", ".join(known_options) or "none"
        raise ValueError(
            f"url has an option that {scheme}:// does not know, {unknown}; it knows {known}: {like}"
        )
    return address


def host_and_port(host: str, port: int) -> str:
    """As they stand in a URL: an IPv6 address is in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def without_secrets(url: str) -> str:
    """A broker's URL, to be shown: without user, password and token, and without what its options say."""
    parts = urlsplit(url)
    user, at, hosts = parts.netloc.rpartition("@")
    shown = parts._replace(netloc=f"{HIDDEN}@{hosts}" if at else hosts, query=HIDDEN if parts.query else "")
    return shown.geturl() if user or parts.query else url


def hide_secrets(text: str, url: str) -> str:
    """The text without anything that stands before the host in the URL, or in an option that is secret."""
    parts = urlsplit(url)
    user, _, _ = parts.netloc.rpartition("@")
    options = [
        value
        for name, _, value in (option.partition("=") for option in parts.query.split("&"))
        if _SECRET.search(unquote_plus(name))
    ]
    name, _, password = user.partition(":")
    written = {user, password or name, *options}  # a name on its own is a token
    forms = written | {
        again(once(part))
        for part in written
        for once in (unquote, unquote_plus)
        for again in (str, partial(quote, safe=""))
    }
    for form in sorted(forms - {""}, key=len, reverse=True):
        text = text.replace(form, HIDDEN)
    return text


def hide_urls(text: str) -> str:
    """A line without what may be secret of any URL in it, which may be cut off, as in `amqp://user:pass...`.

    For what somebody has typed where no URL belongs; where the URL is known, `hide_secrets` leaves more.
    """
    for secret, shown in _SECRETS_OF_ANY:
        text = secret.sub(shown, text)
    return text


def _host(text: str, form: Form) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    try:
        port = parts.port
    except ValueError as error:
        raise (error if "," in text else _WrongPort()) from None
    if port is None:
        port = urlsplit(form.example).port
    if not port:
        raise _WrongPort
    return parts.hostname or "", port
