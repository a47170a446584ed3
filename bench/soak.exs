# Does anything grow with the number of operations?
#
#     mix run bench/soak.exs                       # five minutes
#     mix run bench/soak.exs --minutes 60 --seed 7 --picture soak.svg
#     mix run bench/soak.exs --only traps,servers  # to find out whose a leak is
#
# Every kind of operation is repeated, two at a time, in rounds. After each round, when all is
# quiet, what there is of each resource is counted. Objects that are still in use (instances that
# live as long as the soak) are the same in every round, so each line must be flat.
#
# A line is flat when its lowest value in the last third of the rounds is not above its lowest in
# the first third, with the slack that `@slack` allows. What is lowest is what could not be freed:
# a peak may only be garbage that was not collected yet. The rounds before are warm-up: code is
# loaded and allocators find their size in them. Exit status 1 tells that a line is not flat.

Code.require_file("picture.exs", __DIR__)

defmodule Bench.Soak do
  alias Beamr.Allocator

  @rounds 60
  # Of the rounds.
  @warm_up 0.2
  @workers 2

  @mib 1_048_576
  # What a line may rise by: a share of what it was, and an amount. Counts may not rise at all. The
  # allocators of the system and of the VM never give everything back, and not in the same order.
  @slack %{
    "resident memory" => {0.03, 8 * @mib},
    "BEAM memory" => {0.01, @mib},
    "BEAM binaries" => {0.01, div(@mib, 4)},
    "ETS memory" => {0.01, div(@mib, 8)},
    "atoms" => {0, 8}
  }

  @guest """
  (module
    (import "env" "add" (func $add (param i32 i32) (result i32)))
    (import "env" "down" (func $down (param i32) (result i32)))
    (import "env" "wait" (func $wait))
    (import "env" "fail" (func $fail))
    (type $binary (func (param i32 i32) (result i32)))
    (memory (export "memory") 1 64)
    (global $top (mut i32) (i32.const 32768))
    (global (export "counter") (mut i64) (i64.const 0))
    (global $kept (mut externref) (ref.null extern))
    (table (export "table") 4 8 externref)
    (elem declare func $sum)
    (func $sum (export "sum") (type $binary) (i32.add (local.get 0) (local.get 1)))
    (func (export "add") (type $binary) (call $add (local.get 0) (local.get 1)))
    (func (export "nest") (param i32) (result i32)
      (if (result i32) (local.get 0)
        (then (i32.add (i32.const 1) (call $down (i32.sub (local.get 0) (i32.const 1)))))
        (else (i32.const 0))))
    (func (export "spin") (param i32) (result i32)
      (loop
        (local.set 0 (i32.sub (local.get 0) (i32.const 1)))
        (br_if 0 (local.get 0)))
      (i32.const 7))
    (func (export "loop") (loop (br 0)))
    (func (export "wait") (call $wait))
    (func (export "fail") (call $fail))
    (func (export "trap") unreachable)
    (func (export "deep") (result i32) (local i64 i64 i64 i64)
      (call $recurse (i64.const 1)) (i32.const 0))
    (func $recurse (param i64) (call $recurse (local.get 0)))
    (func (export "grow") (result i32) (memory.grow (i32.const 1)))
    (func (export "keep") (param externref) (result externref)
      (global.get $kept)
      (global.set $kept (local.get 0)))
    (func (export "function") (result funcref) (ref.func $sum))
    (func (export "same") (param funcref) (result funcref) (local.get 0))
    (func (export "malloc") (param i32) (result i32)
      (if (i32.gt_u (global.get $top) (i32.const 60000))
        (then (global.set $top (i32.const 32768))))
      (global.get $top)
      (global.set $top (i32.add (global.get $top) (local.get 0))))
    (func (export "free") (param i32)))
  """

  @program """
  (module
    (import "wasi_snapshot_preview1" "fd_write"
      (func $write (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "poll_oneoff"
      (func $poll (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
    (memory (export "memory") 1)
    (data (i32.const 0) "\\10\\00\\00\\00\\06\\00\\00\\00")
    (data (i32.const 16) "hello\\0a")
    (func (export "sleep") (param i64)
      (i32.store (i32.const 272) (i32.const 1))
      (i64.store (i32.const 280) (local.get 0))
      (drop (call $poll (i32.const 256) (i32.const 512) (i32.const 1) (i32.const 1024))))
    (func (export "_start")
      (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
      (call $exit (i32.const 3))))
  """

  defmodule Host do
    use Beamr.Host, module: "env"

    @wasm "add (i32, i32) -> i32"
    def add(_wasm, a, b), do: a + b
  end

  defmodule Point do
    use Beamr.Struct

    layout do
      field :id, :u32
      field :x, :f64
      field :y, :f64
    end
  end

  def main(args) do
    {opts, []} =
      OptionParser.parse!(args,
        strict: [
          minutes: :float,
          seconds: :integer,
          seed: :integer,
          only: :string,
          picture: :string
        ]
      )

    milliseconds = opts[:seconds] && opts[:seconds] * 1_000
    milliseconds = milliseconds || round((opts[:minutes] || 5.0) * 60_000)
    seed = opts[:seed] || :erlang.phash2(make_ref())
    picture = opts[:picture] || "tmp/soak.svg"
    kinds = chosen(opts[:only])

    IO.puts("#{length(kinds)} kinds of operation for #{div(milliseconds, 1_000)} s, seed #{seed}")
    {samples, operations} = soak(kinds, milliseconds, seed)
    failed = report(samples)
    counts(operations)
    draw(picture, samples)
    IO.puts("\ndrawn in #{picture}")

    if failed != [] do
      IO.puts(:stderr, "not flat: #{Enum.join(failed, ", ")}")
      System.halt(1)
    end
  end

  defp chosen(nil), do: kinds()

  defp chosen(names) do
    names = String.split(names, ",")
    Enum.filter(kinds(), fn {name, _setup} -> name in names end)
  end

  # One after the other, in an order of its own for each worker. A kind's share of a round is a
  # process of its own, which makes what it needs and runs one operation after the other.
  defp soak(kinds, milliseconds, seed) do
    data = String.duplicate("x", 100_000)

    modules = %{
      guest: Beamr.compile!(@guest),
      compact: Beamr.compile!(@guest, compact: true),
      data:
        Beamr.compile!(~s|(module (memory (export "memory") 2) (data (i32.const 0) "#{data}"))|),
      program: Beamr.compile!(@program)
    }

    long_lived = %{
      guest: instance(modules.guest),
      program: Beamr.instantiate!(modules.program, wasi: [stdout: nil])
    }

    share = div(milliseconds * @workers, @rounds * length(kinds))
    deadline = System.monotonic_time(:millisecond) + milliseconds

    {samples, operations} =
      Enum.map_reduce(1..@rounds, %{}, fn round, operations ->
        # What counting takes is taken off the shares of the rounds to come.
        left = max(deadline - System.monotonic_time(:millisecond), 0)
        share = min(share, div(left * @workers, (@rounds - round + 1) * length(kinds)))
        done = round(kinds, modules, share, {seed, round})
        {sample(), Map.merge(operations, done, fn _name, a, b -> a + b end)}
      end)

    # Held to the end, so that they are in every sample.
    Beamr.close(long_lived.guest)
    Beamr.close(long_lived.program)
    {samples, operations}
  end

  defp round(kinds, modules, share, {seed, round}) do
    :rand.seed(:exsss, {seed, round, 0})
    shared = instance(modules.guest)

    kinds
    |> Enum.shuffle()
    |> Enum.chunk_every(ceil(length(kinds) / @workers))
    |> Enum.with_index()
    |> Enum.map(fn {kinds, worker} ->
      Task.async(fn ->
        :rand.seed(:exsss, {seed, round, worker + 1})
        context = Map.merge(modules, %{shared: shared, worker: worker})
        for {name, setup} <- kinds, do: {name, share(setup, context, share)}
      end)
    end)
    |> Task.await_many(:infinity)
    |> Enum.concat()
    |> Map.new()
  end

  defp share(setup, context, milliseconds) do
    Task.async(fn ->
      operate = setup.(context)
      repeat(operate, System.monotonic_time(:millisecond) + milliseconds, 0)
    end)
    |> Task.await(:infinity)
  end

  defp repeat(operate, deadline, count) do
    operate.()
    over? = System.monotonic_time(:millisecond) >= deadline
    if over?, do: count + 1, else: repeat(operate, deadline, count + 1)
  end

  defp kinds do
    [
      {"compile",
       fn _context ->
         fn ->
           n = :rand.uniform(1_000_000_000)
           Beamr.compile!(~s|(module (func (export "f") (result i32) (i32.const #{n})))|)
         end
       end},
      {"compile errors", fn _ -> fn -> {:error, _} = Beamr.compile("(module (func $f") end end},
      {"serialize",
       fn %{guest: module} ->
         fn ->
           module |> Beamr.Module.serialize() |> Beamr.Module.deserialize_trusted!()
         end
       end},
      {"instantiate, close", fn %{guest: module} -> fn -> Beamr.close(instance(module)) end end},
      {"instantiate, forget", fn %{guest: module} -> fn -> instance(module) end end},
      {"refused imports",
       fn %{guest: module} -> fn -> {:error, _} = Beamr.instantiate(module) end end},
      {"calls", with_instance(fn wasm -> {:ok, [3]} = Beamr.call(wasm, "sum", [1, 2]) end)},
      {"long calls",
       with_instance(fn wasm -> {:ok, [7]} = Beamr.call(wasm, "spin", [2_000_000]) end)},
      {"shared calls",
       fn %{shared: wasm} ->
         fn ->
           for result <- together(3, fn -> Beamr.call(wasm, "sum", [1, 2], timeout: 5_000) end) do
             {:ok, [3]} = result
           end
         end
       end},
      {"imports", with_instance(fn wasm -> {:ok, [3]} = Beamr.call(wasm, "add", [1, 2]) end)},
      {"nested calls",
       with_instance(fn wasm -> {:ok, [20]} = Beamr.call(wasm, "nest", [20]) end)},
      {"raising imports",
       with_instance(fn wasm -> {:error, %Beamr.ImportError{}} = Beamr.call(wasm, "fail", []) end)},
      {"traps",
       with_instance(fn wasm -> {:error, %Beamr.Trap{}} = Beamr.call(wasm, "trap", []) end)},
      {"stack overflows",
       with_instance(fn wasm -> {:error, %Beamr.Trap{}} = Beamr.call(wasm, "deep", []) end)},
      {"wrong calls",
       with_instance(fn wasm ->
         {:error, %Beamr.CallError{}} = Beamr.call(wasm, "sum", [1])
         {:error, %Beamr.CallError{}} = Beamr.call(wasm, "nothing", [])
       end)},
      {"timeouts",
       with_instance(fn wasm ->
         {:error, %Beamr.CallError{reason: :timeout}} = Beamr.call(wasm, "loop", [], timeout: 1)
       end)},
      {"interrupts",
       with_instance(fn wasm ->
         {pid, monitor} =
           spawn_monitor(fn -> Beamr.call(wasm, "loop", [], timeout: :infinity) end)

         interrupt(wasm, pid, monitor)
       end)},
      {"kills in the guest", with_instance(fn wasm -> kill_in(wasm, "loop") end)},
      {"kills in an import", with_instance(fn wasm -> kill_in(wasm, "wait") end)},
      {"kills in the queue",
       with_instance(fn wasm ->
         holder = spawn(fn -> Beamr.call(wasm, "wait", [], timeout: :infinity) end)
         kill_in(wasm, "sum", [1, 2])
         kill(holder)
       end)},
      {"close in a call",
       fn %{guest: module} ->
         fn ->
           wasm = instance(module)
           function = Enum.random(["loop", "wait"])
           pid = spawn(fn -> Beamr.call(wasm, function, [], timeout: 1_000) end)
           maybe_wait()
           Beamr.close(wasm)
           kill(pid)
         end
       end},
      {"growth",
       fn %{guest: module} ->
         fn ->
           wasm = instance(module)
           Beamr.IO.grow!(wasm, 8)
           Beamr.call!(wasm, "grow", [])
           Beamr.close(wasm)
         end
       end},
      {"compact memories",
       fn %{compact: module} ->
         fn ->
           wasm = instance(module)
           Beamr.IO.grow!(wasm, Enum.random([0, 1, 3, 20, 60]))
           <<0>> = Beamr.IO.read!(wasm, Beamr.IO.size!(wasm) - 1, 1)
           Beamr.IO.write!(wasm, Beamr.IO.size!(wasm) - 4, "last")
           if :rand.uniform(2) == 1, do: Beamr.close(wasm)
         end
       end},
      {"much data",
       fn %{data: module} ->
         fn ->
           wasm = Beamr.instantiate!(module)
           "x" = Beamr.IO.read!(wasm, 50_000, 1)
           Beamr.IO.write!(wasm, 50_000, "y")
           if :rand.uniform(2) == 1, do: Beamr.close(wasm)
         end
       end},
      {"memory",
       with_instance(fn wasm ->
         Beamr.IO.write!(wasm, 0, ["some", [" bytes"]])
         "some bytes" = Beamr.IO.read!(wasm, 0, 10)
         {:error, _} = Beamr.IO.read(wasm, 2 ** 33, 4)
         Beamr.IO.write_array!(wasm, 64, :f64, [1.0, 2.0, 3.0])
         [1.0, 2.0, 3.0] = Beamr.IO.read_array!(wasm, 64, :f64, 3)
         [_, "s"] = Beamr.IO.read_many!(wasm, [{100, :i32}, {0, 1}])
         Beamr.IO.copy!(wasm, 1024, 0, 4096)
       end)},
      {"strings",
       with_instance(fn wasm ->
         pointer = Beamr.IO.write_string!(wasm, "a string")
         "a string" = Beamr.IO.read_string!(wasm, pointer)
         :ok = Beamr.IO.free(wasm, pointer)

         Beamr.IO.with_string(wasm, "another", fn pointer ->
           Beamr.IO.read_string!(wasm, pointer)
         end)

         # Never freed: the guest's malloc comes round to it again.
         Beamr.IO.malloc!(wasm, 128)
       end)},
      {"externrefs",
       with_instance(fn wasm ->
         {:ok, [_before]} = Beamr.call(wasm, "keep", [{:a, "term", make_ref(), self()}])
         :ok = Beamr.Instance.table_set(wasm, "table", 0, %{any: "term"})
         {:ok, %{any: "term"}} = Beamr.Instance.table_get(wasm, "table", 0)
       end)},
      {"funcrefs",
       with_instance(fn wasm ->
         {:ok, [function]} = Beamr.call(wasm, "function", [])
         {:ok, [again]} = Beamr.call(wasm, "same", [function])
         {:ok, [3]} = Beamr.call(wasm, again, [1, 2])
       end)},
      {"globals",
       with_instance(fn wasm ->
         :ok = Beamr.Instance.set_global(wasm, "counter", 7)
         {:ok, 7} = Beamr.Instance.get_global(wasm, "counter")
         {:error, _} = Beamr.Instance.get_global(wasm, "nothing")
       end)},
      {"views and structs",
       with_instance(fn wasm ->
         view = Beamr.View.new!(wasm, 1024, 64)
         :ok = Beamr.View.write(view, 8, "bytes")
         {:error, _} = Beamr.View.read(view, 60, 8)
         Point.write!(wasm, 2048, %Point{id: 1, x: 0.5, y: 1.5})
         %Point{id: 1} = Point.read!(wasm, 2048)
       end)},
      {"allocators", with_instance(&allocators/1)},
      {"servers",
       fn %{guest: module} ->
         fn ->
           {:ok, pid} = Beamr.start_link(module: module, imports: imports())
           {:ok, [3]} = Beamr.call(pid, "sum", [1, 2])
           {:ok, <<_>>} = Beamr.IO.read(pid, 0, 1)
           :ok = GenServer.stop(pid)
         end
       end},
      {"resets",
       fn %{guest: module} ->
         fn ->
           {:ok, pid} = Beamr.start_link(module: module, imports: imports(), on_trap: :reset)
           for _ <- 1..10, do: {:error, %Beamr.Trap{}} = Beamr.call(pid, "trap", [])
           :ok = GenServer.stop(pid)
         end
       end},
      {"kills of servers",
       fn %{guest: module} ->
         Process.flag(:trap_exit, true)

         fn ->
           {:ok, pid} = Beamr.start_link(module: module, imports: imports())
           caller = spawn(fn -> call_one_that_dies(pid, Enum.random(["loop", "wait"])) end)
           maybe_wait()
           kill(pid)
           kill(caller)

           receive do
             {:EXIT, ^pid, _reason} -> :ok
           end
         end
       end},
      {"programs",
       fn %{program: module} ->
         fn -> {:ok, 3} = Beamr.WASI.run(module, stdout: fn "hello\n" -> :ok end) end
       end},
      {"kills in a sleep",
       fn %{program: module} ->
         fn ->
           wasm = Beamr.instantiate!(module, wasi: [])
           {pid, monitor} = spawn_monitor(fn -> Beamr.call(wasm, "sleep", [10_000_000_000]) end)
           maybe_wait()
           end_of(pid, monitor)
         end
       end},
      {"short sleeps",
       fn %{program: module} ->
         wasm = Beamr.instantiate!(module, wasi: [])
         fn -> {:ok, []} = Beamr.call(wasm, "sleep", [200_000]) end
       end},
      {"hosts",
       fn %{guest: module} ->
         fn ->
           wasm = Beamr.instantiate!(module, hosts: [Host], stubs: :trap)
           {:ok, [3]} = Beamr.call(wasm, "add", [1, 2])
           {:error, _} = Beamr.call(wasm, "wait", [])
         end
       end}
    ]
  end

  defp with_instance(operation) do
    fn %{guest: module} ->
      wasm = instance(module)
      fn -> operation.(wasm) end
    end
  end

  defp instance(module), do: Beamr.instantiate!(module, imports: imports())

  defp imports do
    %{
      "env" => %{
        "add" => fn _wasm, a, b -> a + b end,
        "down" => fn wasm, n -> hd(Beamr.call!(wasm, "nest", [n])) end,
        "wait" => fn _wasm -> Process.sleep(:infinity) end,
        "fail" => fn _wasm -> raise "no" end
      }
    }
  end

  defp allocators(wasm) do
    # One ends with its owner, one is closed, one is left to the end of this process.
    {owner, monitor} =
      spawn_monitor(fn ->
        bump = Allocator.Bump.new!(wasm, base: 4096, limit: 8192)
        Allocator.alloc!(bump, 100)
        if :rand.uniform(2) == 1, do: Process.sleep(:infinity)
      end)

    maybe_wait()
    end_of(owner, monitor)

    {:ok, stack} = retry(fn -> Allocator.Stack.new(wasm, base: 8192, size: 1024) end)
    Allocator.Stack.mark!(stack)
    Allocator.alloc!(stack, 100)
    Allocator.Stack.pop!(stack)
    Allocator.close(stack)

    guest = Allocator.Guest.new!(wasm)
    pointer = Allocator.alloc!(guest, 100)
    Allocator.free(guest, pointer)
    Allocator.close(guest)
  end

  defp retry(new) do
    with {:error, _overlap} <- new.(), do: retry(new)
  end

  defp together(count, function) do
    1..count |> Enum.map(fn _ -> Task.async(function) end) |> Task.await_many(:infinity)
  end

  # Some are hit before they have begun, some in the middle.
  defp maybe_wait, do: if(:rand.uniform(2) == 1, do: Process.sleep(1))

  defp kill_in(wasm, function, args \\ []) do
    {pid, monitor} = spawn_monitor(fn -> Beamr.call(wasm, function, args, timeout: :infinity) end)
    maybe_wait()
    end_of(pid, monitor)
  end

  defp call_one_that_dies(server, function) do
    Beamr.call(server, function, [])
  catch
    :exit, {reason, {GenServer, :call, _args}} when reason in [:killed, :noproc] -> :ok
  end

  defp kill(pid) do
    monitor = Process.monitor(pid)
    end_of(pid, monitor)
  end

  defp end_of(pid, monitor) do
    Process.exit(pid, :kill)

    # What it raised before that ends the soak.
    receive do
      {:DOWN, ^monitor, :process, ^pid, reason} ->
        if reason not in [:killed, :normal, :noproc], do: exit(reason)
    end
  end

  # Until it has begun, there is nothing to interrupt.
  defp interrupt(wasm, pid, monitor) do
    Beamr.interrupt(wasm)

    receive do
      {:DOWN, ^monitor, :process, ^pid, _reason} -> :ok
    after
      1 -> interrupt(wasm, pid, monitor)
    end
  end

  # Large stores are freed by threads of their own, and processes end a little after they are
  # told to: the counts are taken when they have come to rest.
  defp sample(before \\ nil, tries \\ 100) do
    for pid <- Process.list(), do: :erlang.garbage_collect(pid)
    now = counts()

    if now == before or tries == 0 do
      memory() ++ now
    else
      receive do
      after
        10 -> sample(now, tries - 1)
      end
    end
  end

  defp counts do
    native = for {kind, count} <- Beamr.Native.count_live(), do: {"native #{kind}", count}

    [
      {"processes", length(Process.list())},
      {"ports", length(Port.list())},
      {"ETS tables", length(:ets.all())},
      {"threads", threads()},
      {"monitors and links", relations()}
      | native
    ]
  end

  # Of the long-lived processes above all.
  defp relations do
    for pid <- Process.list(),
        {_key, list} <- Process.info(pid, [:monitors, :monitored_by, :links]) || [],
        reduce: 0 do
      count -> count + length(list)
    end
  end

  defp memory do
    [
      {"resident memory", resident()},
      {"BEAM memory", :erlang.memory(:total)},
      {"BEAM binaries", :erlang.memory(:binary)},
      {"ETS memory", :erlang.memory(:ets)},
      {"atoms", :erlang.system_info(:atom_count)}
    ]
  end

  # 0 where the system does not tell.
  defp resident do
    case File.read("/proc/self/statm") do
      {:ok, text} -> text |> String.split() |> Enum.at(1) |> String.to_integer() |> Kernel.*(4096)
      {:error, _} -> 0
    end
  end

  # Threads that keep files are started when needed, and end when idle: those are not counted.
  defp threads do
    names =
      for path <- Path.wildcard("/proc/self/task/*/comm"),
          {:ok, name} <- [File.read(path)],
          do: name

    Enum.count(names, &(String.starts_with?(&1, "beamr-") and &1 != "beamr-wasi\n"))
  end

  # Prints a line for each resource, and answers those that are not flat.
  defp report(samples) do
    {warm, rest} = Enum.split(samples, round(length(samples) * @warm_up))
    third = max(div(length(rest), 3), 1)
    IO.puts("#{length(warm)} rounds of warm-up, #{length(rest)} counted\n")
    IO.puts(row(["", "first third", "last third", "greatest", "may rise by", ""]))

    for {{name, _}, place} <- Enum.with_index(hd(samples)), reduce: [] do
      failed ->
        values = for sample <- rest, do: sample |> Enum.at(place) |> elem(1)
        first = values |> Enum.take(third) |> Enum.min()
        last = values |> Enum.take(-third) |> Enum.min()
        {share, amount} = Map.get(@slack, name, {0, 0})
        allowed = round(first * share) + amount
        flat? = last <= first + allowed
        verdict = if flat?, do: "flat", else: "RISES"
        IO.puts(row([name, first, last, Enum.max(values), allowed, verdict]))
        if flat?, do: failed, else: failed ++ [name]
    end
  end

  defp row([name | cells]) do
    [String.pad_trailing(name, 20) | Enum.map(cells, &String.pad_leading("#{&1}", 13))]
  end

  defp counts(operations) do
    total = operations |> Map.values() |> Enum.sum()
    IO.puts("\n#{total} operations:")

    operations
    |> Enum.sort()
    |> Enum.map(fn {name, count} -> "#{name} #{count}" end)
    |> Enum.chunk_every(4)
    |> Enum.each(&IO.puts("  " <> Enum.join(&1, ", ")))
  end

  defp draw(path, [first | _] = samples) do
    series =
      for {{name, _}, place} <- Enum.with_index(first) do
        {name, for(sample <- samples, do: sample |> Enum.at(place) |> elem(1))}
      end

    warm_up = round(length(samples) * @warm_up)
    Bench.Picture.lines(path, "What there is after each round; grey: warm-up", series, warm_up)
  end
end

Bench.Soak.main(System.argv())
