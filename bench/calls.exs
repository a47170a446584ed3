# What do calls of all kinds cost?
#
#     mix run bench/calls.exs

Code.require_file("measure.exs", __DIR__)

defmodule Bench.Calls do
  import Bench.Measure

  @guest """
  (module
    (import "env" "id" (func $id (param i32) (result i32)))
    (import "env" "again" (func $again (param i32) (result i32)))
    (func (export "id") (param i32) (result i32) (local.get 0))
    (func (export "imports") (param i32) (result i32)
      (loop
        (drop (call $id (local.get 0)))
        (local.set 0 (i32.sub (local.get 0) (i32.const 1)))
        (br_if 0 (local.get 0)))
      (local.get 0))
    (func (export "nested") (param i32) (result i32) (call $again (local.get 0))))
  """

  def run do
    module = Beamr.compile!(@guest)
    wasm = instance(module)
    elixir = fn -> :erlang.apply(__MODULE__, :id, [1]) end

    header("One process")
    compare("trivial call", fn -> Beamr.call(wasm, "id", [1]) end, "apply in Elixir", elixir)

    one = fn -> Beamr.call(wasm, "imports", [1]) end
    thousand = fn -> Beamr.call(wasm, "imports", [1_000]) end
    compare("with 1 import", one, "trivial call", fn -> Beamr.call(wasm, "id", [1]) end)
    times = compare("with 1,000 imports", thousand, "with 1 import", one)
    fact("each further import: #{time((times.measured - times.baseline) / 999)}")

    compare("nested call", fn -> Beamr.call(wasm, "nested", [1]) end, "with 1 import", one)

    server = Enum.at(Task.async_stream([1], fn _ -> start_server() end), 0) |> elem(1)

    ping = fn ->
      send(server, {self(), :ping})
      receive(do: (:pong -> :ok))
    end

    compare("trivial call", fn -> Beamr.call(wasm, "id", [1]) end, "message and reply", ping)

    title("Concurrent callers, calls per second of all together")

    for callers <- unless_quick([1, 2, 100, 1_000], [1, 2]) do
      own = rate(callers, fn _ -> instance(module) end)
      shared = instance(module)
      together = rate(callers, fn _ -> shared end)

      fact("#{callers} callers: #{own} on an instance each, #{together} on one shared instance")
    end
  end

  def id(n), do: n

  defp instance(module) do
    imports = %{
      "env" => %{
        "id" => fn _wasm, n -> n end,
        "again" => fn wasm, n -> wasm |> Beamr.call!("id", [n]) |> hd() end
      }
    }

    Beamr.instantiate!(module, imports: imports)
  end

  defp start_server, do: spawn(fn -> serve() end)

  defp serve do
    receive do
      {from, :ping} -> send(from, :pong)
    end

    serve()
  end

  defp rate(callers, instance) do
    each = div(unless_quick(200_000, 2_000), callers)

    workers =
      for n <- 1..callers do
        wasm = instance.(n)

        Task.async(fn ->
          receive do:
                    (:go ->
                       for(
                         _ <- 1..each,
                         do: {:ok, [7]} = Beamr.call(wasm, "id", [7], timeout: :infinity)
                       ))

          :done
        end)
      end

    start = System.monotonic_time(:microsecond)
    Enum.each(workers, &send(&1.pid, :go))
    Task.await_many(workers, :infinity)
    round(each * callers * 1_000_000 / (System.monotonic_time(:microsecond) - start))
  end
end

Bench.Calls.run()
