# What does a host's function cost a guest, beside a bare import?
#
#     mix run bench/hosts.exs

Code.require_file("measure.exs", __DIR__)

defmodule Bench.Hosts do
  import Bench.Measure

  alias Beamr.Host.Clean

  # Each function calls its import `n` times: the call itself is spread over them.
  @calls 100

  defmodule Plain do
    use Beamr.Host, module: "bench"

    @wasm "hosted (f64) -> f64"
    def hosted(_wasm, x), do: x
  end

  def run do
    guest = instance()
    bare = call(guest, "bare")

    header("Clean Language, #{@calls} calls of an import in one call of the guest")
    each("a host's function", call(guest, "hosted"), bare)
    each("math_sin", call(guest, "sin"), bare)
    each("mem_alloc", call(guest, "alloc"), bare)
    each("string_to_int of 5 bytes", call(guest, "to_int"), bare)
    each("string_concat, 5 + 5 bytes", call(guest, "concat"), bare)
    each("print of 5 bytes, to nobody", call(guest, "print"), bare)
  end

  defp each(label, function, bare) do
    times = compare(label, function, "bare import", bare)

    fact(
      "#{label}, each: #{time(times.measured / @calls)}, bare: #{time(times.baseline / @calls)}"
    )
  end

  defp call(guest, name) do
    {:ok, []} = Beamr.call(guest, name, [])
    fn -> Beamr.call(guest, name, []) end
  end

  defp instance do
    Beamr.instantiate!(
      """
      (module
        (import "bench" "bare" (func $bare (param f64) (result f64)))
        (import "bench" "hosted" (func $hosted (param f64) (result f64)))
        (import "env" "math_sin" (func $sin (param f64) (result f64)))
        (import "env" "string_concat" (func $concat (param i32 i32 i32 i32) (result i32)))
        (import "env" "string_to_int" (func $to_int (param i32 i32) (result i64)))
        (import "env" "print" (func $print (param i32 i32)))
        (import "memory_runtime" "mem_alloc" (func $alloc (param i32 i32) (result i32)))
        (memory (export "memory") 1)
        (global $heap (export "__heap_ptr") (mut i32) (i32.const 1024))
        (data (i32.const 8) "12345")
        #{many("bare", "(drop (call $bare (f64.const 1)))")}
        #{many("hosted", "(drop (call $hosted (f64.const 1)))")}
        #{many("sin", "(drop (call $sin (f64.const 1)))")}
        #{many("alloc", "(drop (call $alloc (i32.const 8) (i32.const 8)))")}
        #{many("to_int", "(drop (call $to_int (i32.const 8) (i32.const 5)))")}
        #{many("concat", "(drop (call $concat (i32.const 8) (i32.const 5) (i32.const 8) (i32.const 5)))")}
        #{many("print", "(call $print (i32.const 8) (i32.const 5))")})
      """,
      imports: %{"bench" => %{"bare" => fn _wasm, x -> x end}},
      hosts: [
        Plain,
        {Clean.Console, output: nobody()} | Clean.hosts([:math, :strings, :memory_runtime])
      ]
    )
  end

  # The heap begins afresh each time, so that memory need not grow.
  defp many(name, body) do
    """
    (func (export "#{name}") (local $n i32)
      (global.set $heap (i32.const 1024))
      (local.set $n (i32.const #{@calls}))
      (loop $again
        #{body}
        (br_if $again (local.tee $n (i32.sub (local.get $n) (i32.const 1))))))
    """
  end

  # A device that takes everything and keeps nothing.
  defp nobody, do: spawn_link(fn -> forget() end)

  defp forget do
    receive do
      {:io_request, from, reference, _request} -> send(from, {:io_reply, reference, :ok})
    end

    forget()
  end
end

Bench.Hosts.run()
