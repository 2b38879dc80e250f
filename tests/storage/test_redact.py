import pytest

from maejax.storage.redact import redact

SECRET = "s3cretvalue"


@pytest.mark.parametrize(
    "text",
    [
        f"https://me:{SECRET}@host/a.tar",
        f"https://host/a.tar?X-Amz-Credential={SECRET}&X-Amz-Signature={SECRET}",
        f"https://blob/a.tar?sv=1&sig={SECRET}",
        f"https://storage/a.tar?access_token={SECRET}",
        f"pipe:curl -s -L https://host/{{0000..1023}}.tar -H 'Authorization:Bearer {SECRET}'",
        f'pipe:curl -H "authorization: Basic {SECRET}" https://host/a.tar',
        f"pipe:curl -H Authorization:Bearer\\ {SECRET} https://host/a.tar",
        f"pipe:curl -H 'X-Api-Key: {SECRET}' https://host/a.tar",
        f"pipe:curl -u me:{SECRET} https://host/a.tar",
        f"pipe:curl --oauth2-bearer '{SECRET} {SECRET}' https://host/a.tar",
        f"pipe:API_KEY={SECRET} fetch a.tar",
        f"pipe:AWS_SECRET_ACCESS_KEY='{SECRET} {SECRET}' aws s3 cp s3://b/a.tar -",
        "pipe:fetch hf_s3cretvalue a.tar",
        "pipe:fetch ghp_s3cretvalue a.tar",
        "pipe:fetch eyJs3cretvalue.s3cretvalue a.tar",
        "pipe:fetch --pass value-of-a-variable a.tar",
    ],
)
def test_no_secret_is_left_and_the_rest_is(text, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "value-of-a-variable")
    safe = redact(text)
    assert SECRET not in safe and "variable" not in safe
    assert "a.tar" in safe or "{0000..1023}.tar" in safe
    assert redact(safe) == safe


@pytest.mark.parametrize(
    "text",
    [
        "gs://bucket/train-{0000..0127}.tar",
        "https://host/a.tar?version=3&download=true",
        "/data/tokens/key=1/train-0.tar",
        "pipe:cat shards/{0..3}.tar | head -c 100",
    ],
)
def test_what_is_no_secret_stays(text):
    assert redact(text) == text
