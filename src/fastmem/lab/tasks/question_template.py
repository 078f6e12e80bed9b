"""The paper's question prompt (`fastmem.prompts`) with another task or a further rule, for data sets that ask for an
abstention, an option or a verdict."""

WITHOUT_CONTEXT = "Question: {question}"  # what the contrast with and without context compares with, as in the paper
SPAN = "extract from the context the span that best answers the question"


def question_template(rule: str, task: str = SPAN) -> str:
    """The user turn. task: what is asked for. rule: a sentence on when to answer otherwise."""
    return (
        f'Please {task} and provide the answer in the following format: "The answer is: ...". {rule}\n'
        "Context: {context}\nQuestion: {question}"
    )
