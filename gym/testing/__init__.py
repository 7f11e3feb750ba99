"""What tests, trials and the demo use in place of a trained model or a farm; public, since others test against it too.

`ScriptedModelServer` (in `model_server`) stands for a vLLM; `script` says what its policy answers.
`play` (in `episodes`) runs one episode without a farm.
`FakeFarm` (in `fake_farm`) answers as a farm does, with faults on order, for tests of what talks to one.
"""
