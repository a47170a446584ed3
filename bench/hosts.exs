# What does a host's function cost a guest, beside a bare import? (What fd_write and the others of
# WASI cost is in wasi.exs.) And how many rows does SQLite take as a guest, beside the same as a
# program of the system?
#
#     mix run bench/hosts.exs

Code.require_file("measure.exs", __DIR__)
unless Code.ensure_loaded?(SQLite), do: Code.require_file("../examples/sqlite.ex", __DIR__)

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

    sqlite(Path.expand("../tmp/guests/sqlite.wasm", __DIR__), System.find_executable("sqlite3"))
  end

  @rows 10_000
  @create "create table t (id integer primary key, x integer, name text)"

  defp sqlite(guest, program) do
    cond do
      not File.exists?(guest) -> IO.puts("\nwithout SQLite: test/guests/fetch builds it")
      program == nil -> IO.puts("\nwithout SQLite: there is no program sqlite3 beside it")
      true -> sqlite_inserts(Beamr.compile!(File.read!(guest)), program)
    end
  end

  # The same statements for all, in memory; the program reads them from a file.
  defp sqlite_inserts(module, program) do
    inserts = for n <- 1..@rows, do: "insert into t (x, name) values (#{n}, 'row #{n}')"
    script = Enum.join([@create, "begin"] ++ inserts ++ ["commit", "drop table t", ""], ";\n")
    file = Path.join(System.tmp_dir!(), "beamr_bench_#{System.unique_integer([:positive])}.sql")
    File.write!(file, script)
    native = fn -> {"", 0} = System.cmd(program, [":memory:", ".read '#{file}'"]) end

    header("SQLite, #{@rows} inserts in a transaction")
    against = fn label, function -> per_second(compare(label, function, "sqlite3", native)) end

    {wasm, db} = open(module)
    against.("one call of sqlite3_exec", fn -> exec(wasm, db, script) end)

    {:ok, server} = SQLite.start_link(module: module)
    rows = for n <- 1..@rows, do: [n, "row #{n}"]

    against.("prepared, from Elixir", fn ->
      {:ok, []} = SQLite.query(server, @create)
      insert = "insert into t (x, name) values (?, ?)"
      :ok = SQLite.query_all(server, insert, rows, timeout: :infinity)
      {:ok, []} = SQLite.query(server, "drop table t")
    end)

    against.("one by one, from Elixir", fn ->
      for sql <- [@create, "begin"] ++ inserts ++ ["commit", "drop table t"],
          do: {:ok, []} = SQLite.query(server, sql)
    end)

    File.rm!(file)
  end

  defp per_second(times) do
    [guest, native] = for ns <- [times.measured, times.baseline], do: round(@rows * 1.0e9 / ns)
    IO.puts("  inserts per second: #{guest}, sqlite3: #{native}")
  end

  defp open(module) do
    wasm = Beamr.instantiate!(module, wasi: [])

    db =
      Beamr.IO.with_string!(wasm, ":memory:", fn path ->
        Beamr.IO.with_alloc!(wasm, 4, fn pointer ->
          [0] = Beamr.call!(wasm, "sqlite3_open_v2", [path, pointer, 6, 0])
          Beamr.IO.read_u32!(wasm, pointer)
        end)
      end)

    {wasm, db}
  end

  defp exec(wasm, db, script) do
    Beamr.IO.with_string!(wasm, script, fn sql ->
      [0] = Beamr.call!(wasm, "sqlite3_exec", [db, sql, 0, 0, 0], timeout: :infinity)
    end)
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
