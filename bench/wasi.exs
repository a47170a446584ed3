# What does WASI cost?
#
#     mix run bench/wasi.exs

Code.require_file("measure.exs", __DIR__)

defmodule Bench.WASI do
  import Bench.Measure

  # `write` and `clock` call their WASI function so many times, `import` an import that does
  # nothing; `sleep` sleeps so many nanoseconds; `read` reads a byte of the file that `open` opens.
  @guest """
  (module
    (import "env" "nop" (func $nop))
    (import "wasi_snapshot_preview1" "fd_write"
      (func $write (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "clock_time_get"
      (func $clock (param i32 i64 i32) (result i32)))
    (import "wasi_snapshot_preview1" "poll_oneoff"
      (func $poll (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "path_open"
      (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_pread"
      (func $read (param i32 i32 i32 i64 i32) (result i32)))
    (memory (export "memory") 1)
    (data (i32.const 0) "\\10\\00\\00\\00\\06\\00\\00\\00")
    (data (i32.const 16) "hello\\0a")
    (data (i32.const 32) "mix.exs")
    (data (i32.const 48) "\\80\\00\\00\\00\\01\\00\\00\\00")
    (func (export "import") (param i32)
      (loop
        (call $nop)
        (br_if 0 (local.tee 0 (i32.sub (local.get 0) (i32.const 1))))))
    (func (export "write") (param i32)
      (loop
        (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
        (br_if 0 (local.tee 0 (i32.sub (local.get 0) (i32.const 1))))))
    (func (export "clock") (param i32)
      (loop
        (drop (call $clock (i32.const 1) (i64.const 0) (i32.const 8)))
        (br_if 0 (local.tee 0 (i32.sub (local.get 0) (i32.const 1))))))
    (func (export "open") (result i32)
      (call $open (i32.const 3) (i32.const 0) (i32.const 32) (i32.const 7) (i32.const 0)
        (i64.const 2) (i64.const 2) (i32.const 0) (i32.const 8)))
    (func (export "read") (param i32)
      (loop
        (drop (call $read (i32.load (i32.const 8)) (i32.const 48) (i32.const 1) (i64.const 0)
          (i32.const 12)))
        (br_if 0 (local.tee 0 (i32.sub (local.get 0) (i32.const 1))))))
    (func (export "sleep") (param i64) (result i32)
      (i32.store (i32.const 272) (i32.const 1))
      (i64.store (i32.const 280) (local.get 0))
      (call $poll (i32.const 256) (i32.const 512) (i32.const 1) (i32.const 1024))))
  """

  def run do
    module = Beamr.compile!(@guest)
    header("A thousand calls from one call of the guest")

    against = fn label, wasi, function ->
      wasm = instance(module, wasi)
      imports = fn -> call(wasm, "import", [1_000]) end
      compare(label, fn -> call(wasm, function, [1_000]) end, "1,000 imports", imports)
    end

    against.("clock_time_get", [], "clock")
    against.("fd_write to nowhere", [stdout: nil], "write")
    against.("fd_write to a function", [stdout: fn _bytes -> :ok end], "write")

    header("Waiting")
    wasm = instance(module, dirs: [{".", ".", :read}])
    [0] = call(wasm, "open", [])
    sleep = fn -> call(wasm, "sleep", [1_000_000]) end
    compare("sleep of 1 ms", sleep, "receive after 1 ms", fn -> Process.sleep(1) end)

    read = fn -> call(wasm, "read", [1]) end
    {:ok, file} = :file.open("mix.exs", [:read, :raw, :binary])
    compare("a byte of a file", read, ":file.pread", fn -> :file.pread(file, 0, 1) end)

    header("Instances")
    bare = Beamr.compile!("(module)")
    with_wasi = fn -> Beamr.instantiate!(bare, wasi: []) end
    compare("with WASI", with_wasi, "without", fn -> Beamr.instantiate!(bare) end)
  end

  defp instance(module, wasi) do
    nop = fn _wasm -> :ok end
    Beamr.instantiate!(module, wasi: wasi, imports: %{"env" => %{"nop" => nop}})
  end

  defp call(wasm, function, args), do: Beamr.call!(wasm, function, args, timeout: :infinity)
end

Bench.WASI.run()
