defmodule Bench.Idle do
  @moduledoc false
  # What an instance takes of physical memory: one with a memory of a page, of which nothing is
  # touched. A call leaves behind what it has touched of the stack that the instance keeps.

  import Bench.Measure, only: [resident_bytes: 0]

  @guest ~s|(module (memory (export "memory") 1) (func (export "nothing")))|

  @doc "Bytes of each of `count` instances, before and after a call."
  def measure(count) do
    module = Beamr.compile!(@guest)
    # What is made once for all is made.
    [first] = instances(module, 1)
    call(first)
    Beamr.close(first)
    before = resident_bytes()
    instances = instances(module, count)
    idle = (resident_bytes() - before) / count
    Enum.each(instances, &call/1)
    called = (resident_bytes() - before) / count
    Enum.each(instances, &Beamr.close/1)
    {idle, called}
  end

  defp instances(module, count), do: for(_ <- 1..count, do: Beamr.instantiate!(module))
  defp call(instance), do: Beamr.call!(instance, "nothing", [])
end
