"""Public test doubles for a trained model and for a farm, for tests, trials and the demo.

`ScriptedModelServer` (in `model_server.server`) replaces a vLLM; `scripted_policy` determines its answers. `play` (in
`episodes`) runs one episode without a farm. `FakeFarm` (in `stand_ins.fake_farm`) answers as a farm does, with faults
on demand, for tests of clients.
"""
