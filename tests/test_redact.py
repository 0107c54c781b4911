"""Untrusted text is escaped where it is shown, and secrets are redacted everywhere."""

import json
import logging
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from web_server import WebServer

from cliptex.core.errors import CliptexError
from cliptex.core.redact import Formatter, escape_controls, without_secrets
from cliptex.data.web import fetch_file

SECRETS = {
    "HF_TOKEN": "hf_AbCdEfGhIjKl",
    "WANDB_API_KEY": "0123456789abcdef",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI",
    "https_proxy": "http://me:pr0xy-pass@proxy:3128",
}


@pytest.mark.parametrize("secret", ["hf_AbCdEfGhIjKl", "0123456789abcdef", "wJalrXUtnFEMI", "pr0xy-pass"])
def test_values_of_secret_variables_are_hidden(secret):
    assert without_secrets(f"Authorization: Bearer {secret}.", SECRETS) == "Authorization: Bearer ***."


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at https://me:pw@host/a.tar?x=1", "at https://***@host/a.tar?x=1"),
        ("https://me@host/", "https://***@host/"),
        ("https://s3/a.tar?X-Amz-Signature=0af&X-Amz-Date=2", "https://s3/a.tar?X-Amz-Signature=***&X-Amz-Date=2"),
        ("https://h/a?token=abc#end", "https://h/a?token=***#end"),
        ("https://blob/a?sv=1&sig=a%2Fb", "https://blob/a?sv=1&sig=***"),
        ("mail me@host, see https://host/a", "mail me@host, see https://host/a"),
        ("tokens: 3, key: 4", "tokens: 3, key: 4"),
    ],
)
def test_what_lets_one_in_is_hidden_in_addresses(text, shown):
    assert without_secrets(text, {}) == shown


def test_short_values_blacken_no_words():
    assert (
        without_secrets("a token of yes", {"MY_TOKEN": "yes", "TOKENIZERS_PARALLELISM": "of yes"}) == "a token of yes"
    )


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_a_line_of_a_log_stays_one_and_moves_no_cursor(text):
    record = logging.LogRecord("cliptex", logging.INFO, "", 0, "caption: %s", (text,), None)
    first, *more = Formatter("%(message)s").format(record).split("\n")
    assert first.startswith("caption: ") and all(line.startswith("  ") for line in more)
    assert all(char.isprintable() or char in "\t\n" or ord(char) > 0x9F for char in "\n".join([first, *more]))
    assert "\x1b" not in escape_controls(text) and "\u202e" not in escape_controls(text)


def test_logs_of_commands_hide_secrets_and_escape_controls(tmp_path):
    """In the log file and on the terminal, for an error about a file with a hostile name."""
    name = "\x1b[2J<script>$(touch pwned)`touch pwned`;'\"hf_AbCdEfGhIjKl.yaml"
    command = [sys.executable, "-m", "cliptex", "--log", "log.txt", "index-shards", "--config", name]
    environment = {**os.environ, "HF_TOKEN": "hf_AbCdEfGhIjKl"}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == 1
    for said in (ended.stderr, (tmp_path / "log.txt").read_text()):
        assert "\\x1b[2J<script>" in said and "***.yaml" in said
        assert "\x1b" not in said and "hf_AbCdEfGhIjKl" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["log.txt"]


def test_an_address_with_a_password_is_refused_without_showing_it(tmp_path):
    with pytest.raises(CliptexError, match=r"dataset\.shards: http://\*\*\*@host/a\.tar contains a user") as caught:
        fetch_file("http://me:my-password@host/a.tar", tmp_path / "a.tar", "dataset.shards")
    assert "my-password" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_redirect_to_another_scheme_is_not_followed(tmp_path, monkeypatch):
    monkeypatch.setattr("cliptex.data.web.PAUSES_S", ())
    secret = tmp_path / "secret.txt"
    secret.write_text("private")
    for target in (secret.as_uri(), "ftp://127.0.0.1:9/secret.txt"):
        with WebServer() as server:
            server.private = target
            with pytest.raises(CliptexError, match=r"cannot be downloaded|responds with 302"):
                fetch_file(f"{server.url}/inside.jpg", tmp_path / "a.tar", "dataset.shards")
        assert not (tmp_path / "a.tar").exists()


def test_results_have_no_secret_of_an_address(tmp_path):
    from cliptex.core.provenance import provenance

    url = "https://host/a.pth?token=abcdefgh"
    assert "abcdefgh" not in json.dumps(provenance({"experts": {"dpt": {"url": url}}}))


def test_a_log_of_img2dataset_moves_no_cursor(tmp_path):
    from cliptex.data.img2dataset_job import output_to

    with output_to(tmp_path / "log.txt"):
        os.write(1, "HTTP Error 418: \x1b[2J\x07é teapot\n".encode())
    assert (tmp_path / "log.txt").read_text() == "HTTP Error 418: [2Jé teapot\n"
