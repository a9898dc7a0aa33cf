"""The floor of a start: torch and the model, one step on random tokens, nothing else.

python benchmarks/bare_torch.py MODEL TOKENS LOG
"""

import sys


def main() -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    ids = torch.randint(10, model.config.vocab_size, (1, int(sys.argv[2])))
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    with open(sys.argv[3], "a") as file:
        file.write(f'{{"step": 1, "loss": {loss.item()}}}\n')


if __name__ == "__main__":
    main()
