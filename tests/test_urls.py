"""What opens a bucket is never told: users, passwords, query strings and fragments of a lake's address."""

import pytest
from actlake.store.core.errors import redacted, scrubbed
from hypothesis import given
from hypothesis import strategies as st

PLAIN = st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=12)
KEY = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789/+", min_size=12, max_size=40)
MARKED = st.text("abcXYZ019%-_.~=&+:;,!$*()/?@", min_size=0, max_size=20)


@pytest.mark.parametrize(
    ("url", "redacted_url"),
    [
        ("lake", "lake"),
        ("/data/a b?c#d@e/lake", "/data/a b?c#d@e/lake"),
        ("file:///data/a?b#c", "file:///data/a?b#c"),
        ("s3://bucket/lake", "s3://bucket/lake"),
        ("s3://KEY:SECRET@bucket/lake", "s3://bucket/lake"),
        ("s3://KEY:12/SE+CRET@bucket/lake", "s3://bucket/lake"),
        ("https://user:pass@host/lake", "https://host/lake"),
        ("https://user:p@ss@host:8443/lake", "https://host:8443/lake"),
        ("https://token@host/lake", "https://host/lake"),
        ("https://host:9000/bucket/lake@v1", "https://host:9000/bucket/lake@v1"),
        ("http://[::1]:9000/lake?X-Amz-Signature=abc", "http://[::1]:9000/lake"),
        ("https://host/lake?X-Amz-Signature=abc&x=a@b", "https://host/lake"),
        ("https://u:p@host/lake?x=a@b&sig=abc#access_token=z", "https://host/lake"),
        ("hf://datasets/someone/lake@main/sub", "hf://datasets/someone/lake@main/sub"),
        ("simplecache::s3://KEY:SECRET@bucket/lake", "simplecache::s3://bucket/lake"),
        ("zip://lake.zip::https://u:p@host/x.zip?sig=abc", "zip://lake.zip::https://host/x.zip"),
    ],
)
def test_an_address_is_told_without_its_secrets(url, redacted_url):
    assert redacted(url) == redacted_url
    assert redacted(redacted_url) == redacted_url


@given(PLAIN, KEY, PLAIN, PLAIN)
def test_keys_of_s3_in_the_address_are_never_told(user, secret, bucket, path):
    assert redacted(f"s3://{user}:{secret}@{bucket}/{path}") == f"s3://{bucket}/{path}"


@given(st.sampled_from(["http", "https", "s3", "hf", "gs", "abfs"]), PLAIN, PLAIN, st.sampled_from("?#"), MARKED)
def test_query_strings_and_fragments_are_never_told(scheme, host, path, mark, secret):
    assert redacted(f"{scheme}://{host}/{path}{mark}{secret}") == f"{scheme}://{host}/{path}"


@given(st.text())
def test_any_text_is_told_without_an_error_and_once_is_enough(text):
    assert redacted(redacted(text)) == redacted(text)
    assert isinstance(scrubbed(text), str)


def test_a_foreign_error_is_told_without_its_secrets(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG")
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh")
    text = "403 for url 'https://u:p@host/lake?X-Amz-Signature=abc' (key wJalrXUtnFEMI/K7MDENG, Bearer hf_abcdefgh)"
    assert scrubbed(text) == "403 for url 'https://host/lake' (key ***, Bearer ***)"
