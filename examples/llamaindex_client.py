"""LlamaIndex's class for OpenAI-compatible servers against `fastmem serve`, with documents that are memorized.

pip install llama-index-llms-openai-like
fastmem serve &
python examples/llamaindex_client.py
"""

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike


def answer(url: str, model: str, question: str, documents: list[str]) -> str:
    """The answer that is faithful to the documents."""
    extra = {"documents": [{"text": text} for text in documents], "fastmem": {"method": "fastmem+cd"}}
    chat = OpenAILike(
        model=model,
        api_base=url,
        api_key="any",
        is_chat_model=True,
        temperature=0,
        max_tokens=40,
        additional_kwargs={"extra_body": extra},
    )
    return str(chat.chat([ChatMessage(role="user", content=question)]).message.content)


if __name__ == "__main__":
    document = "The ferry leaves at nine from the east pier."
    print(answer("http://127.0.0.1:8000/v1", "fastmem-tiny", "When does the ferry leave?", [document]))
