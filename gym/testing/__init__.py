"""What tests, trials and the demo use in place of a trained model; public, because authors of environments need it.

`ScriptedModelServer` (in `model_server`) stands for a vLLM; `script` says what its policy answers.
"""
