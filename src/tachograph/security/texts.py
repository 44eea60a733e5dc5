"""Secrets in texts: source, diffs, logs, commands, URLs.

A secret is found by the name it stands under (`password`, `--api-key`, `HF_TOKEN`) or by its own
shape (``ghp_…``, a private key, ``https://user:password@host``). Long random text alone is no
secret: commit hashes, digests and UUIDs pass.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache

from tachograph.security.literals import (
    Part,
    block_parts,
    column_parts,
    quoted_parts,
    section_parts,
)
from tachograph.security.names import is_secret_name

REDACTED = "[redacted]"
"""What stands where a secret stood."""

_PIECE = 1 << 16
_SHORTEST = 20  # of the secrets that are one word, and known by their shape


@cache
def _seldom(pattern: str) -> re.Pattern[str]:
    """A pattern that most starts do without, compiled when it is needed."""
    return re.compile(pattern)


_SHAPES = (  # what one of a kind has in it, which is quickly looked for, and how it is written
    ("ghp_ gho_ ghu_ ghs_ ghr_", r"gh[pousr]_[A-Za-z0-9]{20,}"),
    ("github_pat_", r"github_pat_\w{20,}"),
    ("glpat- gldt- glrt- glcbt- glptt- gloas-", r"gl(?:pat|dt|rt|cbt|ptt|oas)-[\w-]{20,}"),
    ("AKIA ASIA", r"(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Z0-9])"),
    ("sk-", r"sk-(?=[A-Za-z_-]{0,60}\d)[\w-]{20,}"),
    ("k_live_", r"[sr]k_live_\w{16,}"),
    ("hf_", r"hf_[A-Za-z0-9]{20,}"),
    ("tacho_", r"tacho_[\w-]{40,}"),
    ("xox xapp-", r"(?:xox[abeoprs]-[\w-]{10,}|xapp-\d-[\w-]{16,})"),
    ("AIza", r"AIza[\w-]{30,}"),
    ("ya29. GOCSPX-", r"(?:ya29\.|GOCSPX-)[\w-]{20,}"),
    ("nvapi-", r"nvapi-[\w-]{40,}"),
    ("gsk_", r"gsk_[A-Za-z0-9]{40,}"),
    ("xai-", r"xai-[A-Za-z0-9]{60,}"),
    ("r8_", r"r8_[A-Za-z0-9]{30,}"),
    ("pplx-", r"pplx-[A-Za-z0-9]{40,}"),
    ("_v1_", r"(?:wandb_v1_\w{40,}|do[por]_v1_[0-9a-f]{60,})"),
    ("dckr_pat_", r"dckr_pat_[\w-]{20,}"),
    ("hvs. hvb.", r"hv[sb]\.[\w-]{24,}"),
    ("lsv2_", r"lsv2_[ps][tk]_\w{32,}"),
    ("pcsk_", r"pcsk_\w{40,}"),
    ("KGAT_", r"KGAT_[0-9a-f]{30,}"),
    ("AGE-SECRET-KEY-1", r"AGE-SECRET-KEY-1[A-Z0-9]{50,}"),
    (":AA", r"\d{8,10}:AA[\w-]{33}(?![\w-])"),
    ("LS0tLS1CRUdJTi", r"LS0tLS1CRUdJTi[A-Za-z0-9+/=]{20,}"),
    ("npm_", r"npm_[A-Za-z0-9]{30,}"),
    ("pypi-", r"pypi-[\w-]{40,}"),
    ("dapi", r"dapi[0-9a-f]{32}"),
    ("SG.", r"SG\.[\w-]{16,99}\.[\w-]{16,}"),
    ("eyJ", r"(?:eyJ[\w-]{8,400}\.[\w-]{8,}(?:\.[\w-]*)?|eyJhcGlf[\w+/=-]{40,})"),
)
_MARKS = tuple((mark, shape) for marks, shape in _SHAPES for mark in marks.split())
_QUOTE = r"""\\{0,3}["']"""  # also in a text that is quoted itself, as in a notebook's file
_GIVEN_AWAY = (  # secrets that only the words before them give away: what is there, and how
    (("bearer",), r"[Bb]earer\s{1,4}(?=[A-Za-z._~+/-]{0,60}\d)"),
    (("basic",), r"[Bb]asic\s{1,4}(?=[A-Za-z0-9+/]{11,}={1,2})"),
    (("login",), r"[Ll]ogin\s{1,4}\S{1,80}\s{1,4}password\s{1,4}"),
    (("login",), rf"wandb[ .]login[\s(]{{1,4}}(?:key\s?=\s?)?(?:{_QUOTE})?(?=[0-9a-f]{{40}})"),
    (
        ("login",),
        r"\b(?:docker|podman|az|oc|skopeo)\s+login\b[^\n&|;]{0,200}?\s-p[ =](?![$<{])",
    ),
    (
        ("--password-stdin",),
        r"""\becho\s["']?(?=[^\n|]{6,120}\|[^\n]{0,80}--password-stdin)(?![$<{"'])""",
    ),
    (
        ("basicauth(", "digestauth(", ".login("),
        rf"""(?:(?:Basic|Digest)Auth|\.login)\({_QUOTE}[^"'\n]{{0,80}}["'],\s?{_QUOTE}""",
    ),
    (("secretstr(", "secretbytes(", "fernet("), rf"(?:Secret(?:Str|Bytes)|Fernet)\(b?{_QUOTE}"),
    (
        ("hook",),
        r"hooks\.slack\.com/services/|discord(?:app)?\.com/api/webhooks/\d{1,30}/"
        r"|webhook\.office\.com/webhookb2/",
    ),
    (("anaconda",), r"anaconda\.(?:org|cloud)/t/(?![$<{])"),
    (("sig=", "signature="), r"""[?&](?i:(?:x-amz-)?signature|sig)=(?=[^&\s"']{16})"""),
    (("sshpass",), r"""sshpass\s-p\s?["']?"""),
    (("curl ",), r"""curl\b[^\n]{0,200}?\s(?:-u|--user)[ =]["']?[^\s:"']{1,80}:"""),
    (("mysql",), r"\bmysql(?:dump|admin)?\b[^\n&|;]{0,200}?\s-p(?=[^\s$<{-])"),
    (("redis-cli",), r"\bredis-cli\b[^\n&|;]{0,200}?\s-a\s(?![$<{])"),
    (
        ("pass'", 'pass"', "pass\\"),
        rf"""{_QUOTE}user(?:name)?{_QUOTE}\s?:[^{{}}]{{1,80}}?{_QUOTE}pass{_QUOTE}\s?:\s?{_QUOTE}"""
        r"(?![$<{])",
    ),
    (("from-literal",), r"--from-literal[ =][\w.-]{1,80}=(?![$<{])"),
    (("add-mask",), r"::add-mask::(?![$<{])"),
    (("uid=",), r"\b(?i:uid=[^;\n]{0,80};\s?pwd=)"),
    (
        ("aws",),
        r"[Aa][Ww][Ss][^\n]{0,60}?(?<![A-Za-z0-9/+])"
        r"(?=[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+=]))(?![0-9a-f]{40})",
    ),
)
_AFTER = tuple((mark, before) for marks, before in _GIVEN_AWAY for mark in marks)
_WORD = r"""(?:[^\s"'\\,;)]|\\(?!["'n])){6,}"""
_PRIVATE_KEY = (
    r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY(?: BLOCK)?-----"
    r"(?:(?!-----END )[A-Za-z0-9+/=\s\\\"',:.()-])*+"
    r"(?:-----END [A-Z ]{0,30}PRIVATE KEY(?: BLOCK)?-----)?"
)
_KEY_BODY = r"[A-Za-z0-9+/=]{32}"
_QUERY = r"(?P<before>[?&;](?P<name>[\w.-]{1,80})=)[^&#\s\"']+"
_USERINFO = (
    r"(?<![A-Za-z])(?P<scheme>[A-Za-z][A-Za-z0-9+.-]{0,30})://"
    r"(?P<userinfo>[^\s/@:\"'<>]{0,200}:[^\s/\"'<>]{0,400}|[^\s/@:?#\"'<>]{1,400})@"
)

_ASSIGNED = r"""(?x)  # name=  name:  "name":  ["name"] =  name: str =  --name
    (?<![\w.\-])-?(?P<flag>--)?(?P<name>[A-Za-z_][\w.\-]*+)
    (?P<equals>\\{0,3}["']?\]?[ \t]{0,9}
        (?: :[ \t]?[\w.]{1,40}(?:\[[\w., |]{1,60}\])?(?:[ \t]\|[ \t]None)?[ \t]{1,2}=(?!=)
        | =>|:=|:(?!/)|=(?!=) )[ \t]{0,9}
      | (?(flag)[ \t]{1,9}(?=[^\s=:\-])|(?!)) )"""
_VALUE = r"""(?x)
    (?:(?:[Bb]earer|[Bb]asic|[Tt]oken|[Dd]igest)[ \t]{1,4})?
    (?: [brfuBRFU]{0,2}(?P<quote>\\{0,3}["'])(?P<quoted>(?:(?!(?P=quote))(?:\\.|[^\n]))*+)
      | (?P<bare>[^\s"'&]{1,200}+) )"""
_TEMPLATE = (
    r"\$\{?[A-Z_]+\}?|\$[({].*|(?:\w{1,9} )?\{+[\w.]*\}+|<[\w -]*>|\*+|%\(?\w*\)?s|%[A-Z_]+%"
    r"|\.\.\.|\[?redacted.*|\w{1,9} "
)
_CODE = r"""(?x)
    (?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*[(\[].* | (?:[A-Za-z_]\w*\.)+[A-Za-z_]+ | [(\[{|&>!\\].*
    | -?\d{1,2}(?:\.\d+)? | (?:None|null|nil|none|true|false|True|False|undefined
        |str|bytes|int|float|bool|object|Any|Path|SecretStr|Token|Tensor|Array|string|String|Optional|lambda|await|not|in|is|if|f)"""
_QUOTED = rf"""[brf]?(?P<quote>{_QUOTE})(?P<value>(?:(?!(?P=quote))(?:\\.|[^\n\\]))*+)(?P=quote)"""
_LAST = rf"\((?:[^()\n]{{0,120}},\s*)?{_QUOTED}\s*\)"  # the last argument of a call
_NAMED = r"(?P<name>[A-Za-z_][\w.\-]*+)"
_FORMS = (  # what it has in it, how it is written, and whether its value must look random
    (
        ("env(", "environ.get(", "setdefault("),
        rf"""(?x)(?:getenv|environ\.get|setdefault|putenv|setenv)\(\s{{0,9}}{_QUOTE}{_NAMED}{_QUOTE}
        (?:\s{{0,9}},\s{{0,40}}(?:default\s?=\s?)?|\)\s{{1,9}}or\s{{1,9}}){_QUOTED}""",
        False,
    ),
    (
        ("env ", "env\t", "env'", "set -"),
        rf"""(?x)(?:(?:%(?:set_)?env|setenv|\bset[ ]-g?x|(?m:^[-+ ]?)ENV)[ \t]{{1,4}}
        |'(?:set_)?env',[ ]'){_NAMED}[ \t]{{1,4}}(?P<value>[^\s'"=]+)""",
        False,
    ),
    (
        ("default",),
        rf"""{_QUOTE}--?{_NAMED}{_QUOTE}[^()]{{0,200}}?\bdefault\s?=\s?{_QUOTED}""",
        False,
    ),
    (
        ("field(",),
        rf"\b{_NAMED}[ \t]?:[^=\n]{{1,60}}=[ \t]?Field\([^()]{{0,200}}?\bdefault={_QUOTED}",
        False,
    ),
    (("</",), rf"<{_NAMED}>(?P<value>[^<\n]+)</(?P=name)>", False),
    (
        ("value",),
        rf"""(?x)(?:name|key)["']?\s{{0,3}}[:=]\s{{0,3}}["']?{_NAMED}["']?,?\s{{1,40}}
        (?:[-+][ ]{{0,40}})?["']?value["']?\s{{0,3}}[:=]\s{{0,3}}["']?(?P<value>[^\s"'<>]+)""",
        False,
    ),
    (("$env:",), rf"""\$[eE]nv:{_NAMED}[ \t]*=[ \t]*{_QUOTED}""", False),
    (
        ("variable",),
        rf"""variable "{_NAMED}"\s*\{{[^{{}}]{{0,300}}?\bdefault\s*=\s*{_QUOTED}""",
        False,
    ),
    (("setpass", "set_pass"), rf"\bset_?(?P<name>[Pp]ass\w*+){_LAST}", False),
    (("secret(", "key(", "token("), rf"\bset_?{_NAMED}{_LAST}", True),
    (("--",), rf"""{_QUOTE}--{_NAMED}{_QUOTE},[ \t]*{_QUOTED}""", True),
    (("pass",), rf"(?P<name>[Pp]ass(?:word|phrase|wd))[ ]{_QUOTED}", True),
)
_FORM_MARKS = tuple((mark, (form, random)) for marks, form, random in _FORMS for mark in marks)
_IN_COLUMNS = ("passw", "pwd", "secret", "token", "api_key", "apikey", "credential")
_HEADER = (
    r"(?m)^[-+ ]?(?P<names>[\w.\"-]+(?P<separator>[,;\t])[\w.\"-]+(?:(?P=separator)[\w.\"-]+)*)"
    r"\r?\n"
)
_IS_MANIFEST = r"""kind:[ \t]*["']?Secret\b"""  # of Kubernetes
_MANIFEST = r"(?m)^[-+ ]*+(?:data|stringData):[ \t]*(?=\r?\n)"
_SECTION = r"(?m)^[-+ ]?\[(?P<name>[\w.\"-]+)\][ \t]*\r?\n"
_WORD_LEFT = r"[^\s\"'&]*+"
_MARKED = r"(?:[&!][\w!-]+[ \t]+)+(?=[^\s|>$])"  # an anchor or a type of YAML
_PROSE = (  # what a docstring says of a parameter
    r"(?=.*[ ](?:the|an?|of|to|for|your|is|be|used|if|from|with|in|by)[ ])"
    r"(?:\([^)\n]{1,60}\)|[A-Z][a-z']*|the|an?|your)[ ].*"
)
_AMBIGUOUS = {"token", "auth"}  # in a text these name words and methods as often as secrets


def redact_text(text: str) -> str:
    """Replace every secret in a text (source, diff, log line, command) by `[redacted]`.

    Lines stay lines, and the first character of a diff's line stays, so that a redacted diff
    can still be read as one. Takes time linear in the length of the text.
    """
    if len(text) < _SHORTEST and text.isidentifier():
        return text
    if "PRIVATE KEY" in text:
        text = _seldom(_PRIVATE_KEY).sub(_redact_private_key, text)
    if len(text) < _PIECE:
        return _redact_piece(text)
    return "".join(map(_redact_piece, _pieces(text)))


def _pieces(text: str) -> Iterator[str]:
    """Whole lines of about `_PIECE` characters, so that no single search holds the GIL long."""
    start = 0
    while len(text) - start > 2 * _PIECE:
        end = text.find("\n", start + _PIECE) + 1 or len(text)
        yield text[start:end]
        start = end
    yield text[start:]


def _redact_piece(text: str) -> str:
    if "://" in text:
        text = _seldom(_USERINFO).sub(_redact_userinfo, text)
    for shape in {shape: None for mark, shape in _MARKS if mark in text}:
        text = _seldom(rf"(?<![A-Za-z0-9]){shape}").sub(REDACTED, text)
    small = text.lower()
    for before in {before: None for mark, before in _AFTER if mark in small}:
        secret = _seldom(rf"(?P<before>{before}){_WORD}")
        text = secret.sub(lambda match: match["before"] + REDACTED, text)
    if ":" in text or "=" in text or "--" in text:
        text = _redact_assignments(text)
    if "]\n" in text or "]\r\n" in text:
        text = _redact_sections(text)
    if any(word in small for word in _IN_COLUMNS):
        text = _redact_columns(text)
    if "Secret" in text and _seldom(_IS_MANIFEST).search(text):
        text = _redact_manifest(text)
    for form, only_random in {kind: None for mark, kind in _FORM_MARKS if mark in small}:
        text = _redact_form(text, form, only_random)
    return text


def _redact_form(text: str, form: str, only_random: bool) -> str:
    """Redact the values of one way to write names and values, where the name is secret."""
    parts = []
    for match in _seldom(form).finditer(text):
        name, value = match["name"], match["value"]
        if is_secret_name(name) and value and _may_be_secret(name, value):
            parts += [Part(*match.span("value"))] if _looks_random(value) or not only_random else []
    return _without(text, parts) if parts else text


def _redact_sections(text: str) -> str:
    """Redact what stands under a secret name in TOML or INI."""
    parts: list[Part] = []
    for head in _seldom(_SECTION).finditer(text):
        name = head["name"]
        if is_secret_name(name):
            found = section_parts(text, head.end())
            parts += [
                part
                for part in found
                if is_secret_name(f"{name}.{part.key}")
                and REDACTED not in text[part.start : part.end]
                and _may_be_secret(name, text[part.start : part.end])
            ]
    return _without(text, parts) if parts else text


def _redact_manifest(text: str) -> str:
    """Redact what a secret of Kubernetes holds, whatever it is called."""
    parts: list[Part] = []
    for head in _seldom(_MANIFEST).finditer(text):
        indent = len(head[0]) - len(head[0].lstrip("-+ "))
        parts += block_parts(text, indent, head.end())
    secret = (part for part in parts if _may_be_secret("", text[part.start : part.end]))
    return _without(text, secret)


def _redact_columns(text: str) -> str:
    """Redact what stands under a secret name in a table with separators."""
    parts: list[Part] = []
    done = 0
    for head in _seldom(_HEADER).finditer(text):
        names = [name.strip('"') for name in head["names"].split(head["separator"])]
        secret = {column for column, name in enumerate(names) if is_secret_name(name)}
        if secret and head.start() >= done:
            found, done = column_parts(text, head.end(), head["separator"], secret, len(names))
            parts += [
                part
                for part in found
                if _is_in_table(names[int(part.key)], text[part.start : part.end])
            ]
    return _without(text, parts) if parts else text


def _is_in_table(name: str, value: str) -> bool:
    """Whether a value of a column is a secret; a column of tokens is one of words as often."""
    if name.lower() in _AMBIGUOUS and not (len(value) >= 12 and _looks_random(value)):
        return False
    return len(value) > 3 and REDACTED not in value and _may_be_secret(name, value)


def _redact_private_key(match: re.Match[str]) -> str:
    if not _seldom(_KEY_BODY).search(match[0]):
        return match[0]  # a mention, not a key
    _, *lines = match[0].split("\n")
    return "\n".join([REDACTED, *(_diff_marker(line) + REDACTED for line in lines)])


def _diff_marker(line: str) -> str:
    return line[:1] if line[:1] in ("+", "-", " ") and not line.startswith("-----E") else ""


def _redact_userinfo(match: re.Match[str]) -> str:
    """``https://user:password@`` and ``https://token@``, but not ``ssh://git@``."""
    if ":" not in match["userinfo"] and not match["scheme"].lower().endswith(("http", "https")):
        return match[0]
    return f"{match['scheme']}://{REDACTED}@"


def _redact_assignments(text: str) -> str:
    parts: list[Part] = []
    for assigned in _seldom(_ASSIGNED).finditer(text):
        if is_secret_name(assigned["name"]) and not (parts and assigned.start() < parts[-1].end):
            parts += _secret_parts(assigned)
    return _without(text, parts) if parts else text


def _without(text: str, parts: Iterable[Part]) -> str:
    pieces, done = [], 0
    for start, end, _ in parts:
        pieces += [text[done:start], REDACTED]
        done = end
    return "".join([*pieces, text[done:]])


def _secret_parts(assigned: re.Match[str]) -> list[Part]:
    """Where the secrets lie in an assigned value; nothing where it is code or a template."""
    text, start = assigned.string, assigned.end()
    if text.startswith(REDACTED, start):
        return []
    in_yaml = assigned["equals"].strip() == ":" and assigned["name"].lower() not in _AMBIGUOUS
    in_yaml = in_yaml and _opens_line(assigned)
    if in_yaml and (marked := _seldom(_MARKED).match(text, start)):
        start = marked.end()
    parts = quoted_parts(text, start, bare=in_yaml)
    if not parts and in_yaml:
        indent = assigned.start() - text.rfind("\n", 0, assigned.start()) - 1
        parts = block_parts(text, indent, start)
        if parts and _seldom(_PROSE).fullmatch(text, *parts[0][:2]):
            return []
    value = None if parts else _seldom(_VALUE).match(text, start)
    if value is not None:
        quoted = bool(value["quote"])
        start, end = value.span("quoted") if quoted else _bare_span(assigned, value, in_yaml)
        if start < end == value.end("bare") and (rest := _seldom(_WORD_LEFT).match(text, end)):
            end = rest.end()  # so much was looked at as shows whether it is code
        if text[end : end + 1] in ('"', "'"):  # of a text that is quoted itself
            end = start + len(text[start:end].rstrip("\\"))
        parts = [Part(start, end)]
    return [part for part in parts if _is_secret_part(assigned, part)]


def _is_secret_part(assigned: re.Match[str], part: Part) -> bool:
    name, literal = assigned["name"], assigned.string[part.start : part.end]
    if not literal or (part.key and not is_secret_name(f"{name}.{part.key}")):
        return False
    return _may_be_secret(name, literal) and (
        name.lower() not in _AMBIGUOUS or bool(assigned["flag"]) or _looks_random(literal)
    )


def _may_be_secret(name: str, literal: str) -> bool:
    return not (_seldom(_TEMPLATE).fullmatch(literal) or _is_same_name(name, literal))


def _bare_span(assigned: re.Match[str], value: re.Match[str], in_yaml: bool) -> tuple[int, int]:
    name, equals, bare = assigned["name"], assigned["equals"], value["bare"]
    start = value.start("bare")
    if equals == "=" and (assigned["flag"] or name.isupper()):  # shell, .env
        return start, start + len(bare.rstrip(",;]})"))
    first = re.split(r"[,;\]})]", bare, maxsplit=1)[0]
    if _seldom(_CODE).fullmatch(bare) or _seldom(_CODE).fullmatch(first):
        return 0, 0
    if in_yaml:  # the rest of the line
        line = value.string[start:].partition("\n")[0]
        said = _seldom(_PROSE).fullmatch(line.strip())
        end = 0 if said else len(re.split(r"\s#|\s*$", line, maxsplit=1)[0])
        return start, start + end
    return start, start + len(first if equals != "=" else bare.rstrip(",;]})"))


def _is_same_name(name: str, value: str) -> bool:
    """Whether a value only repeats its name, as in ``connect(api_key=api_key)``."""
    long, short = sorted((f"_{name}".lower(), f"_{value}".lower()), key=len, reverse=True)
    return long.endswith(short)


def _opens_line(assigned: re.Match[str]) -> bool:
    text, start = assigned.string, assigned.start()
    return not text[text.rfind("\n", 0, start) + 1 : start].strip("+- \t")


def _looks_random(literal: str) -> bool:
    return " " not in literal and (len(literal) >= 20 or bool(re.search(r"\d", literal)))


def redact_url(url: str) -> str:
    """The URL without user name and password, and without secrets in its query.

    ``ssh://git@host`` and ``git@host:path`` keep their user, which is no secret there.
    """
    match = _seldom(_USERINFO).search(url)
    if match and _redact_userinfo(match) != match[0]:
        url = f"{url[: match.start()]}{match['scheme']}://{url[match.end() :]}"
    return redact_text(_seldom(_QUERY).sub(_redact_query, url))


def _redact_query(match: re.Match[str]) -> str:
    name = match["name"].lower()
    secret = is_secret_name(name) or name.rpartition("-")[2] in ("sig", "signature", "code")
    return match["before"] + REDACTED if secret else match[0]
