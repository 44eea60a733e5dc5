"""Secrets never survive, and what is no secret is left alone."""

from __future__ import annotations

import base64
import json
import random
import string
import sysconfig
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tachograph.security.names import is_secret_name
from tachograph.security.redaction import redact_argv, redact_environment, redact_value
from tachograph.security.texts import REDACTED, redact_text, redact_url

LETTERS = string.ascii_letters + string.digits


def _random(draw: random.Random, length: int, alphabet: str = LETTERS) -> str:
    return "".join(draw.choices(alphabet, k=length - 1)) + "7"


def _jwt(draw: random.Random) -> str:
    head = base64.urlsafe_b64encode(b'{"alg":"HS256","typ":"JWT"}').decode().rstrip("=")
    return f"{head}.{_random(draw, 40)}.{_random(draw, 43)}"


def _pem(draw: random.Random) -> str:
    lines = [_random(draw, 64, LETTERS + "+/") for _ in range(12)]
    return "\n".join(["-----BEGIN RSA PRIVATE KEY-----", *lines, "-----END RSA PRIVATE KEY-----"])


SHAPED: dict[str, Callable[[random.Random], str]] = {
    "github": lambda draw: f"ghp_{_random(draw, 36)}",
    "tachograph": lambda draw: f"tacho_{_random(draw, 43)}",
    "github-app": lambda draw: f"ghs_{_random(draw, 36)}",
    "github-fine": lambda draw: f"github_pat_{_random(draw, 22)}_{_random(draw, 59)}",
    "gitlab": lambda draw: f"glpat-{_random(draw, 20)}",
    "aws-id": lambda draw: f"AKIA{_random(draw, 16, string.ascii_uppercase + string.digits)}",
    "openai": lambda draw: f"sk-{_random(draw, 48)}",
    "openai-project": lambda draw: f"sk-proj-{_random(draw, 48)}",
    "anthropic": lambda draw: f"sk-ant-api03-{_random(draw, 60)}",
    "huggingface": lambda draw: f"hf_{''.join(draw.choices(string.ascii_letters, k=34))}",
    "slack": lambda draw: f"xoxb-{_random(draw, 12)}-{_random(draw, 24)}",
    "google": lambda draw: f"AIza{_random(draw, 35)}",
    "npm": lambda draw: f"npm_{_random(draw, 36)}",
    "pypi": lambda draw: f"pypi-AgEIcHlwaS5vcmc{_random(draw, 60)}",
    "nvidia": lambda draw: f"nvapi-{_random(draw, 64)}",
    "groq": lambda draw: f"gsk_{_random(draw, 52)}",
    "telegram": lambda draw: f"1234567890:AA{_random(draw, 33)}",
    "vault": lambda draw: f"hvs.{_random(draw, 90)}",
    "key in base64": lambda draw: base64.b64encode(_pem(draw).encode()).decode(),
    "databricks": lambda draw: f"dapi{_random(draw, 32, '0123456789abcdef')}",
    "jwt": _jwt,
    "pem": _pem,
}
PLACES: dict[str, Callable[[str], str]] = {
    "alone": lambda secret: secret,
    "prose": lambda secret: f"we use {secret} for now",
    "added": lambda secret: f"@@ -1,2 +1,3 @@\n x = 1\n+key = '{secret}'\n y = 2",
    "removed": lambda secret: f"@@ -1,2 +1,1 @@\n-{secret}\n y = 2",
    "json": lambda secret: json.dumps({"a": [secret]}),
    "url": lambda secret: f"https://host/path?x={secret}&y=1",
    "call": lambda secret: f"login({secret!r})",
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", SHAPED)
def test_a_secret_of_known_shape_never_survives_a_text(kind: str, place: str) -> None:
    """Its shape is enough, wherever it stands and whatever it is called."""
    for seed in range(10):
        secret = SHAPED[kind](random.Random(seed))
        redacted = redact_text(PLACES[place](secret))
        parts = [line for line in secret.replace("\\n", "\n").split("\n") if "-----" not in line]
        assert not any(part in redacted for part in parts), redacted
        assert REDACTED in redacted


NAMES = (
    *("password", "db_password", "PGPASSWORD", "passwd", "api_key", "apiKey", "API_KEY"),
    *(
        "OPENAI_API_KEY",
        "HF_TOKEN",
        "auth_token",
        "client_secret",
        "secret",
        "aws_secret_access_key",
    ),
    *("AWS_ACCESS_KEY_ID", "WANDB_API_KEY", "private_key", "credential", "accessToken", "DB_PASS"),
)
ASSIGNMENTS = (
    *('+{name} = "{secret}"', "-{name}='{secret}'", "{name}={secret}", "export {name}={secret}"),
    *(
        '"{name}": "{secret}",',
        "  {name}: {secret}",
        '{name}: str = "{secret}"',
        "--{name} {secret}",
    ),
    *("--{name}={secret}", 'os.environ["{name}"] = "{secret}"', "connect({name}='{secret}', x=1)"),
    *('{{\\"{name}\\": \\"{secret}\\"}}', "{name} := '{secret}'", "f(a, {name}=b'{secret}')"),
    *("https://host/?x=1&{name}={secret}", "[section]\n{name} = {secret}\nother = 1"),
)


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None)
@given(secret=st.text(LETTERS + "+/_-!", min_size=6, max_size=40).map("9{}".format))
def test_a_secret_under_a_secret_name_never_survives_a_text(name: str, secret: str) -> None:
    """Its name is enough, in the forms that source, configuration and shells write."""
    for form in ASSIGNMENTS:
        text = form.format(name=name, secret=secret)
        assert secret not in redact_text(text), text


@pytest.mark.parametrize(
    "text",
    [
        'API_KEYS = ["pa55word", "pa55word2"]',
        '+API_KEYS = [\n+    "pa55word",\n+    "pa55word2",\n+]\n lr = 1',
        '{"api_keys": ["pa55word"], "lr": 0.1}',
        'password = """\npa55word\n"""',
        'API_KEY = (\n    "pa55"\n    "pa55word"\n)',
        'API_KEY = \\\n    "pa55word"',
        'API_KEY = "abc" + "pa55word"',
        "password: |\n  pa55word\nlr: 1",
        "api_keys:\n- pa55word\n- pa55word2\nlr: 1",
        "+api_keys:\n+  - pa55word\n+  - pa55word2\n lr: 1",
        "secrets:\n  a: pa55word\n  b:\n    c: pa55word\nlr: 1",
        "secrets: {a: pa55word, b: [pa55word]}\nlr: 1",
        "password: &here pa55word",
        '+[db.credentials]\n+me = "pa55word"\n+you = 9\n+[other]\n+x = 1',
        'os.environ.get("API_KEY", "pa55word")',
        "os.environ.setdefault('API_KEY', 'pa55word')",
        'add_argument("--api-key", type=str, default="pa55word")',
        'api_key: str = Field(default="pa55word")',
        'api_key: Optional[str] = "pa55word"',
        'run(["login", "--api-key", "pa55word"])',
        "%env API_KEY pa55word",
        "get_ipython().run_line_magic('env', 'API_KEY pa55word')",
        "<password>pa55word</password>",
        "- name: API_KEY\n  value: pa55word",
        "login failed for user 'me' with password 'pa55word'",
        '{\\\\"api_key\\\\": \\\\"pa55word\\\\"}',
        "curl -s -u me:pa55word https://host",
        "sshpass -p pa55word ssh host",
        "https://discord.com/api/webhooks/123/pa55word-pa55word",
        "https://user:pa55word@host/path",
        "git+https://user:pa55word@host/repo.git@main#egg=x",
        "postgresql+psycopg://me:pa55word@db:5432/x",
        "redis://:pa55word@host:6379/0",
        "https://pa55word@host/x.git",
        "https://user:pa@55word:pa55word@host",
        "curl -H 'Authorization: Bearer pa55word.abcdefghij'",
        "sent Basic cGE1NXdvcmQ6aHVudGVyMg== and got 200",
        "Authorization: Basic cGE1NXdvcmQ6cGE1NXdvcmQ=",
        "machine host login me password pa55word",
        "DefaultEndpointsProtocol=https;AccountKey=pa55word==;EndpointSuffix=core",
        "password: pa55word with spaces  # comment",
        "aws configure set x pa55wordpa55wordpa55wordpa55wordpa55WORD",
        "wandb login 0123456789abcdef0123456789abcdefpa55word"[:52].replace("pa55word", "01234567"),
        "https://hooks.slack.com/services/T000/B000/pa55word",
        'client.set_password("pa55word")',
        "keyring.set_password('host', 'me', 'pa55word')",
        'openai.set_api_key("pa55word")',
        'os.getenv("API_KEY") or "pa55word"',
        'SecretStr("pa55word")',
        "HTTPDigestAuth('me', 'pa55word')",
        'server.login("me@host", "pa55word")',
        json.dumps({"source": ['client.set_password("pa55word")']}),
        json.dumps(['os.getenv("API_KEY", "pa55word")', 'server.login("me", "pa55word")']),
        "{'user': 'me', 'pass': 'pa55word'}",
        "echo pa55word | docker login -u me --password-stdin host",
        '{"auths": {"host": {"identitytoken": "pa55word"}}}',
        "client-key-data: pa55word",
        "kind: Secret\ndata:\n  dsn: pa55word\n---\nlr: 1",
        "+kind: Secret\n+stringData:\n+  dsn: pa55word\n",
        "- data:\n    dsn: pa55word\n  kind: Secret",
        "[passwords]\nme = pa55word",
        "kubectl create secret generic x --from-literal=y=pa55word",
        'echo "::add-mask::pa55word"',
        "UID=me;PWD=pa55word;",
        "https://host/c?sv=2020&sig=pa55wordpa55word",
        "docker login -u me -p pa55word host",
        "mysql -u me -ppa55word base",
        "redis-cli -h host -a pa55word ping",
        "set -x API_KEY pa55word",
        '$env:API_KEY = "pa55word"',
        'variable "db_password" {\n  default = "pa55word"\n}',
        "user,password,age\nme,pa55word,3\n",
        '+"token";"user"\n+"pa55word-pa55word";"me"\n lr = 1',
    ],
)
def test_credentials_in_urls_headers_and_commands_are_taken_out(text: str) -> None:
    """Forms in which neither a name with an equals sign nor a prefix marks the secret."""
    assert json.loads(redact_text(json.dumps([text])))  # a notebook's file stays one
    redacted = redact_text(text)
    assert "pa55word" not in redacted
    assert "cGE1NXdvcmQ" not in redacted
    assert REDACTED in redacted
    assert "pa55word" not in redact_text(text.replace("\n", "\r\n"))  # as on Windows


def test_a_redacted_diff_keeps_its_lines_and_markers() -> None:
    """A key over several lines of a diff becomes as many lines, so line numbers stay true."""
    key = _pem(random.Random(1))
    diff = "\n".join(["+++ b/key.pem", *(f"+{line}" for line in key.split("\n")), " after"])
    redacted = redact_text(diff).split("\n")
    assert len(redacted) == len(diff.split("\n"))
    assert [line[:1] for line in redacted] == [line[:1] for line in diff.split("\n")]
    assert redacted[-1] == " after"


HARMLESS = (
    *("max_tokens=512", "num_tokens: 17", "tokenizer = BertTokenizer()", "key_dim=64"),
    *("monitor='val_loss'", "author: Ada", "pad_token = '<pad>'", "sort_key = lambda x: x"),
    *("key = jax.random.PRNGKey(0)", "token = tokens[i]", "for token in tokens:", "token: str"),
    *("password = getpass()", "api_key = os.environ['API_KEY']", "api_key=self.api_key"),
    *("connect(api_key=api_key)", "password: ${DB_PASSWORD}", "if password == other:"),
    *("ssh://git@github.com/a/b", "git@github.com:a/b.git", "http://localhost:3000/@vite"),
    *("aws commit 074e4e8a5ad7e3a4b5f8e0d7c6b5a4f3e2d1c0b9", "the password is wrong"),
    *("    api_key: The key that is used for the login.", "api_key = SecretStr(os.environ['X'])"),
    *(
        "api_key:\n    The key of the user, as\n    the site shows it.",
        "password = (read() or '',)",
    ),
    *('"api_key": {"type": "string"}', "add_argument('--password', '-p', help='of the base')"),
    *(
        "blank_token = '[BLANK]'",
        "max_keys: [a, b]",
        "os.getenv('API_KEY', '')",
        "api_keys = [a, b]",
    ),
    *("token,label\nhello,NOUN\nworld2,NOUN\n", "tokenizer.set_token('<eos>')", "set_token(token)"),
    *("docker login host && docker run -p 127.0.0.1:8080:80 x", "mysql -h host; ls -private"),
    *("docker login -u me -p ${X} host", "user,password\n", "kind: ConfigMap\ndata:\n  a: b\n"),
    *("task-scheduler-with-a-very-long-name-2024", "password = None", "index 074e4e8..0273da1"),
)


@pytest.mark.parametrize("text", HARMLESS)
def test_harmless_text_is_left_alone(text: str) -> None:
    """What only looks like a secret to a careless rule stays."""
    assert redact_text(text) == text


def test_digests_and_identifiers_are_left_alone() -> None:
    """Commit hashes, SHA-256 digests, UUIDs and base64 are what provenance is made of."""
    draw = random.Random(3)
    for _ in range(300):
        digest = f"{draw.getrandbits(256):064x}"
        lines = f"commit {digest[:40]}\nsha256:{digest}\n{uuid.UUID(int=draw.getrandbits(128))}\n"
        lines += f"model.pt = {base64.b64encode(draw.randbytes(60)).decode()}\n"
        assert redact_text(lines) == lines


def test_ordinary_source_is_left_alone() -> None:
    """In the standard library, which talks of passwords a lot, nearly no line is touched."""
    library = Path(sysconfig.get_paths()["stdlib"])
    sources = [path.read_text(errors="replace") for path in sorted(library.glob("*.py"))]
    lines = [line for source in sources for line in source.splitlines()]
    changed = [line for line in lines if redact_text(line) != line]
    assert len(lines) > 50_000
    assert len(changed) < len(lines) / 5_000, changed


@settings(deadline=None)
@given(st.text(max_size=300))
def test_redacting_twice_changes_nothing_more(text: str) -> None:
    """A stored text that passes through again stays the same."""
    once = redact_text(text)
    assert redact_text(once) == once


EVIL = (
    *("a", "-", "://", "aws ", "password", "password ", '"', "-----BEGIN PRIVATE KEY-----", "eyJ"),
    *(
        "-eyJ",
        " ",
        "a:",
        "bearer ",
        "sk-",
        "-sk-",
        "password=",
        '\\"',
        "a.",
        "password:",
        "login x ",
    ),
    *(
        'password="',
        "xoxb-",
        "password: ",
        "\n-",
        "=",
        "/",
        "@",
        "a:b@",
        "token: ",
        "SG.",
        "--token ",
        "password=[",
        "password: |\n ",
    ),
    *(
        "password,a\n",
        "password,\n",
        "mysql ",
        "docker login ",
        "set_pass(",
        "kind: Secret\ndata:\n",
    ),
)


@pytest.mark.parametrize("repeated", EVIL)
def test_no_text_makes_it_slow(repeated: str) -> None:
    """Ten times the text takes about ten times as long, never a hundred times."""

    def seconds(length: int) -> float:
        text = repeated * (length // len(repeated))
        times = []
        for _ in range(3):
            before = time.process_time()
            redact_text(text)
            times.append(time.process_time() - before)
        return min(times)

    assert seconds(200_000) < 25 * max(seconds(20_000), 0.002)


def test_a_diff_of_a_megabyte_takes_no_second() -> None:
    """Processor time, on real source."""
    library = Path(sysconfig.get_paths()["stdlib"])
    source = "".join(p.read_text(errors="replace") for p in sorted(library.glob("*.py")))[: 1 << 20]
    diff = "".join(f"+{line}\n" for line in source.splitlines())[: 1 << 20]
    times = []
    for _ in range(3):
        before = time.process_time()
        redact_text(diff)
        times.append(time.process_time() - before)
    assert min(times) < 1, times  # 0.15 s on a quiet machine, twice that on a busy one


# ---------------------------------------------------------------------------- names


@pytest.mark.parametrize("name", [*NAMES, "--api-key", "logger.api_key", "secrets.db.user", "auth"])
def test_secret_names_are_known(name: str) -> None:
    """In any spelling, as a flag and as a path."""
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    [
        *("max_tokens", "num_tokens", "max_new_tokens", "tokenizer", "pad_token", "pad_token_id"),
        *("eos_token", "key", "key_dim", "num_key_value_heads", "sort_key", "primary_key", "PWD"),
        *("monitor", "author", "authors", "pin_memory", "secretary", "forward_pass", "n_passes"),
        *("signature", "password_length", "token_path", "auth_method", "access", "version"),
        *(
            "key_padding_mask",
            "dataset.keys",
            "word_delimiter_token",
            "eot_token",
            "wandb_project",
            "authenticated",
        ),
    ],
)
def test_harmless_names_are_known(name: str) -> None:
    """The vocabulary of model configurations."""
    assert not is_secret_name(name)


# ---------------------------------------------------------------------------- structured


@settings(deadline=None)
@given(st.text(LETTERS + " -_=/!", min_size=8).map("9Z{}".format))
def test_no_secret_survives_a_command_line(secret: str) -> None:
    """As the next argument, after an equals sign, and inside JSON; positions stay."""
    argv = ["train.py", "--token", secret, f"--api-key={secret}", f"db.password={secret}"]
    argv += ["++x.password=" + secret, "X.API_KEY", secret, "--api-keys", secret, secret]
    argv += ["--config", json.dumps({"password": secret}), "--epochs", "5", "--use-token"]
    redacted = redact_argv(argv)
    assert not any(secret in argument for argument in redacted)
    assert len(redacted) == len(argv)
    assert redacted[-3:] == ["--epochs", "5", "--use-token"]


def test_a_secret_flag_without_value_hides_no_other_flag() -> None:
    """``--use-token --epochs 5`` has no secret in it."""
    argv = ["t.py", "--use-token", "--epochs", "5", "--max-tokens", "9", "key=3", "--lr=0.1"]
    assert redact_argv(argv) == argv
    assert redact_argv(["-c", "password='a9'; run()"]) == ["-c", f"password='{REDACTED}'; run()"]


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in _leaves(item)] + list(value)
    if isinstance(value, list):
        return [leaf for item in value for leaf in _leaves(item)]
    return [value]


@settings(deadline=None)
@given(
    st.recursive(
        st.just("planted-9Z"),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner),
        max_leaves=8,
    )
)
def test_no_secret_survives_nested_parameters(secret: Any) -> None:
    """Whatever the shape of what lies under a secret name."""
    config = {"model": {"lr": 0.1, "api_key": secret}, "secrets": {"db": secret}, "n": [1, "x"]}
    redacted = redact_value("config", config)
    assert "planted-9Z" not in _leaves(redacted)
    assert redacted["n"] == [1, "x"]
    assert redact_value("overrides", ["+api_keys=[a9,b9]", "x=[a,b]"])[1:] == ["x=[a,b]"]
    assert redact_value("overrides", "+api_keys=[a9,b9]") == f"+api_keys={REDACTED}"
    assert redacted["model"]["lr"] == 0.1


def test_values_that_are_no_secrets_stay() -> None:
    """None, booleans, fractions and empty texts say that there is none."""
    config = {"token": None, "password": "", "use_auth": True, "max_tokens": 5, "api_key": False}
    assert redact_value("", config) == config


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://user:pass@github.com/x.git", "https://github.com/x.git"),
        ("https://token@github.com/x.git", "https://github.com/x.git"),
        ("ssh://git@github.com/x.git", "ssh://git@github.com/x.git"),
        ("git@github.com:a/b.git", "git@github.com:a/b.git"),
        ("ssh://me:pass@host/x", "ssh://host/x"),
        ("https://s3/x?X-Amz-Signature=ab&y=1", "https://s3/x?X-Amz-Signature=[redacted]&y=1"),
        ("https://azure/x?sv=1&sig=abc", "https://azure/x?sv=1&sig=[redacted]"),
        ("sqlite:////data/runs.sqlite", "sqlite:////data/runs.sqlite"),
        ("file:///data/a@b", "file:///data/a@b"),
    ],
)
def test_credentials_are_stripped_from_urls(url: str, expected: str) -> None:
    """User name, password and signed queries go; the rest is left as it is."""
    assert redact_url(url) == expected


def test_the_environment_is_recorded_by_an_allow_list() -> None:
    """Unknown variables stay out whatever they hold; known ones are still redacted."""
    environment = {
        "HOME": "/home/me",
        "MY_APP": "planted",
        "TACHOGRAPH_TOKEN": "planted",
        "SLURM_JWT": "planted",
        "PYTHONHASHSEED": "0",
        "RANK": "1",
        "CUDA_VISIBLE_DEVICES": "0,1",
        "PIP_INDEX_URL": "https://me:planted@index/simple",
        "TORCH_HOME": "https://me:planted@index/",
    }
    recorded = redact_environment(environment)
    assert "planted" not in json.dumps(recorded)
    assert recorded["PYTHONHASHSEED"] == "0"
    assert recorded["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert {"HOME", "MY_APP", "PIP_INDEX_URL"}.isdisjoint(recorded)
