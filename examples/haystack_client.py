"""Haystack's OpenAI generator against `fastmem serve`, with documents that are memorized.

pip install haystack-ai
fastmem serve &
python examples/haystack_client.py
"""

from haystack.components.generators.chat import OpenAIChatGenerator
from haystack.dataclasses import ChatMessage
from haystack.utils import Secret


def answer(url: str, model: str, question: str, documents: list[str]) -> str:
    """The answer that is faithful to the documents."""
    extra = {"documents": [{"text": text} for text in documents], "fastmem": {"method": "fastmem+cd"}}
    chat = OpenAIChatGenerator(
        model=model,
        api_base_url=url,
        api_key=Secret.from_token("any"),
        generation_kwargs={"temperature": 0, "max_tokens": 40, "extra_body": extra},
    )
    return str(chat.run([ChatMessage.from_user(question)])["replies"][0].text)


if __name__ == "__main__":
    document = "The ferry leaves at nine from the east pier."
    print(answer("http://127.0.0.1:8000/v1", "fastmem-tiny", "When does the ferry leave?", [document]))
