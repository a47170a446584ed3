defmodule Bench.Alive do
  @moduledoc false
  # What instances take that are alive at the same time: ones with a memory of a page. A call
  # touches the first bytes of that, and of the stack that the instance keeps from then on.

  import Bench.Measure, only: [resident_bytes: 0]

  @guest """
  (module
    (memory (export "memory") 1)
    (func (export "add") (param i32) (result i32)
      (i32.store (i32.const 0) (i32.add (i32.load (i32.const 0)) (local.get 0)))
      (i32.load (i32.const 0))))
  """

  @doc """
  Bytes and nanoseconds of each of `count` instances; and how many mappings the node has, and bytes
  of page tables.
  """
  def measure(count, options) do
    module = Beamr.compile!(@guest, options)
    # What is made once for all is made.
    first = Beamr.instantiate!(module)
    [1] = Beamr.call!(first, "add", [1])
    :ok = Beamr.close(first)

    before = resident()
    {make, instances} = each(count, fn -> for _ <- 1..count, do: Beamr.instantiate!(module) end)
    idle = (resident() - before) / count

    {call, _} =
      each(count, fn -> for wasm <- instances, do: [7] = Beamr.call!(wasm, "add", [7]) end)

    {again, _} =
      each(count, fn -> for wasm <- instances, do: [8] = Beamr.call!(wasm, "add", [1]) end)

    used = (resident() - before) / count
    mappings = "/proc/self/maps" |> File.stream!() |> Enum.count()
    page_tables = page_tables()
    {close, :ok} = each(count, fn -> Enum.each(instances, &Beamr.close/1) end)

    %{
      idle: idle,
      used: used,
      mappings: mappings,
      page_tables: page_tables,
      make: make,
      call: call,
      call_again: again,
      close: close
    }
  end

  # The garbage of this process is no part of what instances take.
  defp resident do
    :erlang.garbage_collect()
    resident_bytes()
  end

  defp page_tables do
    status = File.stream!("/proc/self/status")

    Enum.find_value(status, 0, fn line ->
      with ["VmPTE:", kib, "kB"] <- String.split(line),
           do: String.to_integer(kib) * 1024,
           else: (_other -> nil)
    end)
  end

  defp each(count, fun) do
    {microseconds, result} = :timer.tc(fun)
    {microseconds * 1_000 / count, result}
  end
end
