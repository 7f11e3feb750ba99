"""Test doubles for a trained model and for a farm, for tests, trials and the demo; public.

`ScriptedModelServer` (in `model_server.server`) stands for a vLLM; `scripted_policy` says what its policy answers.
`play` (in `episodes`) runs one episode without a farm.
`FakeFarm` (in `stand_ins.fake_farm`) answers as a farm does, with faults on order, for tests of what talks to one.
"""
