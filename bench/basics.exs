# What do the basic operations cost, next to a NIF that does nothing and to :binary.copy?
#
#     mix run bench/basics.exs

Code.require_file("measure.exs", __DIR__)

defmodule Bench.Basics do
  import Bench.Measure
  alias Beamr.Native

  @guest """
  (module
    (import "env" "add" (func $import (param i32 i32) (result i32)))
    (memory (export "memory") 257)
    (global $top (mut i32) (i32.const 1024))
    (func (export "add") (param i32 i32) (result i32)
      (i32.add (local.get 0) (local.get 1)))
    (func (export "add_by_import") (param i32 i32) (result i32)
      (call $import (local.get 0) (local.get 1)))
    (func (export "malloc") (param i32) (result i32)
      (global.set $top (i32.add (global.get $top) (local.get 0)))
      (i32.sub (global.get $top) (local.get 0)))
    (func (export "free") (param i32) (global.set $top (local.get 0))))
  """

  def run do
    wasm =
      Beamr.instantiate!(@guest, imports: %{"env" => %{"add" => fn _wasm, a, b -> a + b end}})

    noop = fn -> Native.bench_noop() end
    memory(wasm, noop)
    calls(wasm, noop)
    instances(noop)
  end

  defp memory(wasm, noop) do
    header("Memory")
    compare("size", fn -> Beamr.IO.size(wasm) end, "no-op NIF", noop)

    eight = :binary.copy("12345678")
    copies = fn -> Native.bench_binary(eight) end
    compare("size", fn -> Beamr.IO.size(wasm) end, "NIF that copies 8 B", copies)
    compare("read 8 B", fn -> Beamr.IO.read(wasm, 0, 8) end, "NIF that copies 8 B", copies)
    compare("write 8 B", fn -> Beamr.IO.write(wasm, 0, eight) end, "NIF that copies 8 B", copies)

    for {label, size} <- [
          {"4 KiB", 4096},
          {"64 KiB", 65_536},
          {"1 MiB", 1_048_576},
          {"16 MiB", 16_777_216}
        ] do
      data = :binary.copy("x", size)
      copy = fn -> :binary.copy(data) end
      Beamr.IO.write!(wasm, 0, data)
      compare("read #{label}", fn -> Beamr.IO.read(wasm, 0, size) end, ":binary.copy", copy)
      compare("write #{label}", fn -> Beamr.IO.write(wasm, 0, data) end, ":binary.copy", copy)
    end

    string = :binary.copy("x", 4096)
    Beamr.IO.write!(wasm, 0, [string, 0])
    read = fn -> Beamr.IO.read(wasm, 0, 4096) end
    compare("read_string 4 KiB", fn -> Beamr.IO.read_string(wasm, 0) end, "read 4 KiB", read)
  end

  defp calls(wasm, noop) do
    header("Calls")
    compare("call", fn -> Beamr.call(wasm, "add", [1, 2]) end, "no-op NIF", noop)

    compare(
      "call with one import",
      fn -> Beamr.call(wasm, "add_by_import", [1, 2]) end,
      "no-op NIF",
      noop
    )

    allocate = fn ->
      {:ok, pointer} = Beamr.IO.malloc(wasm, 64)
      Beamr.IO.free(wasm, pointer)
    end

    compare("malloc and free", allocate, "no-op NIF", noop)
  end

  defp instances(noop) do
    header("Instances")
    module = Beamr.compile!("(module (memory (export \"memory\") 1))")
    instantiate = fn -> module |> Beamr.instantiate!() |> Beamr.close() end
    compare("instantiate and close", instantiate, "no-op NIF", noop)
  end
end

Bench.Basics.run()
