"""FastMem (arXiv 2406.16069) the plain way: tune the last feed-forward network on a document, then answer from it.

Nothing of the package is used. It is deliberately simple: every step runs the whole model forward and backward, and
the tuned weights are written into the model. The tests compare FastMem with it, and the benchmark is relative to it.

    python examples/naive.py --model FOLDER_OR_ID --context "The document." --question "What does it say?"
"""

import argparse
import re

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

QUESTION_PROMPT = (
    "Please extract from the context the span that best answers the question and provide the answer in the following "
    'format: "The answer is: ...".\nContext: {context}\nQuestion: {question}'
)
# What the families call the FFN of a decoder layer; OPT and XGLM keep its two halves in the layer itself.
FFN_NAMES = r"mlp|ffn|feed_forward|block_sparse_moe|shared_mlp|fc1|fc2"


def ffn_parameters(model, layers=(-1,)):
    """Names of every parameter of the FFN of these decoder layers (negative numbers count from the last)."""
    found = [re.match(rf"(.*?\.)(\d+)\.({FFN_NAMES})\.", name) for name, _ in model.named_parameters()]
    count = 1 + max(int(match[2]) for match in found if match)
    wanted = {layer % count for layer in layers}
    return [match.string for match in found if match and int(match[2]) in wanted]


def memorize(
    model, ids, scored, parameters, learning_rate=1e-5, steps=10, kl_weight=0.1, weight_decay=0.01, max_grad_norm=1.0
):
    """Tune `parameters` (names) of `model` in place on the scored tokens; (loss, cross entropy, KL) of every step.

    ids [S] int64, scored [S] bool: token i is a target, predicted at position i-1. Each triple is taken before the
    update of its step.
    """
    model.requires_grad_(False).eval()
    tuned = [model.get_parameter(name).requires_grad_() for name in parameters]
    # AdamW works on float32 copies whatever the model's dtype is: the forward and backward pass run in the dtype of
    # the model, the gradient is cast up, the updated copy is cast down into the model. For float32 both are the same.
    masters = [parameter.detach().float().clone() for parameter in tuned]
    optimizer = torch.optim.AdamW(masters, lr=learning_rate, weight_decay=weight_decay)
    positions = scored[1:].nonzero()[:, 0]
    targets = ids[positions + 1]
    original, history = None, []
    for _ in range(steps):
        logits = model(ids[None], use_cache=False).logits[0, positions].float()
        log_probs = logits.log_softmax(-1)
        if original is None:
            original = log_probs.detach()  # nothing is tuned yet, so the first KL is exactly 0
        cross_entropy = F.nll_loss(log_probs, targets)
        kl = F.kl_div(log_probs, original, log_target=True, reduction="batchmean")  # KL(original || now)
        loss = cross_entropy + kl_weight * kl
        history.append((loss.item(), cross_entropy.item(), kl.item()))
        gradients = torch.autograd.grad(loss, tuned, allow_unused=True)  # a bias that only picks experts has none
        for master, gradient in zip(masters, gradients, strict=True):
            master.grad = None if gradient is None else gradient.float()
        torch.nn.utils.clip_grad_norm_(masters, max_grad_norm)
        optimizer.step()
        with torch.no_grad():
            for parameter, master in zip(tuned, masters, strict=True):
                parameter.copy_(master)
    model.requires_grad_(False)
    return history


def document_tokens(tokenizer, context):
    """The context as an assistant turn: ids [S] and scored [S], True for the context and the end of the turn."""
    context = context.strip()
    turn = tokenizer.apply_chat_template([{"role": "assistant", "content": context}], tokenize=False).rstrip()
    encoded = tokenizer(turn, add_special_tokens=False, return_offsets_mapping=True)
    begin = turn.index(context)
    return torch.tensor(encoded.input_ids), torch.tensor([end > begin for _, end in encoded.offset_mapping])


@torch.no_grad()
def answer(model, tokenizer, question, context, max_new_tokens=100):
    """Greedy answer of `model`, the context still in the prompt."""
    user = QUESTION_PROMPT.format(context=context.strip(), question=question.rstrip("? ") + "?")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": user}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**prompt, do_sample=False, max_new_tokens=max_new_tokens)
    return tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder or id of an instruction-tuned causal language model")
    parser.add_argument("--context", required=True, help="the document")
    parser.add_argument("--question", required=True)
    parser.add_argument("--learning-rate", type=float, default=1e-5)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--kl-weight", type=float, default=0.1)
    args = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(args.model).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    print("before:", answer(model, tokenizer, args.question, args.context))
    ids, scored = document_tokens(tokenizer, args.context)
    history = memorize(
        model, ids, scored, ffn_parameters(model), args.learning_rate, args.steps, kl_weight=args.kl_weight
    )
    for step, (loss, cross_entropy, kl) in enumerate(history):
        print(f"step {step:2d}   loss {loss:.4f}   cross entropy {cross_entropy:.4f}   KL {kl:.4f}")
    print("after:", answer(model, tokenizer, args.question, args.context))


if __name__ == "__main__":
    main()
