defmodule Hostile.Calls do
  @moduledoc false
  # Rounds of random calls of everything, by several processes on the same handles.

  alias Hostile.{Api, Pool, Terms, Watch}

  @workers 6
  @calls_per_round 3_000
  # Imports this deep call nothing, and kill nobody.
  @deepest 4

  @guests [
    general: ~S"""
    (module $general
      (import "env" "cb" (func $cb (param i32) (result i32)))
      (import "env" "ext" (func $ext (param externref) (result externref)))
      (import "env" "many" (func $many (param i32 f64) (result i64 f32)))
      (memory (export "memory") 2 64)
      (global (export "global") (mut i32) (i32.const 5))
      (global (export "g_i64") (mut i64) (i64.const 5))
      (global (export "g_f32") (mut f32) (f32.const nan))
      (global (export "g_f64") (mut f64) (f64.const 1))
      (global (export "g_v128") (mut v128) (v128.const i64x2 1 2))
      (global (export "g_ext") (mut externref) (ref.null extern))
      (global (export "g_ref") (mut funcref) (ref.func $f))
      (global $next (mut i32) (i32.const 1024))
      (table (export "table") 4 300 funcref)
      (table (export "table_ext") 4 300 externref)
      (elem (i32.const 0) $f $recurse)
      (func $malloc (export "malloc") (param $size i32) (result i32)
        (global.get $next)
        (global.set $next (i32.and (i32.const 0x1ffff) (i32.add (global.get $next) (local.get $size)))))
      (func (export "free") (param i32) (i32.store (i32.const 0) (local.get 0)))
      (func $f (export "f") (result i32) (i32.const 7))
      (func (export "get") (param i32) (result i32) (i32.load (local.get 0)))
      (func (export "cb") (param i32) (result i32) (call $cb (local.get 0)))
      (func (export "ext") (param externref) (result externref) (call $ext (local.get 0)))
      (func (export "ref") (param funcref) (result funcref) (local.get 0))
      (func (export "many") (param i32 f64) (result i64 f32) (call $many (local.get 0) (local.get 1)))
      (func (export "swap") (param f32 v128) (result v128 f32) (local.get 1) (local.get 0))
      (func $nest (export "nest") (param i32) (result i32)
        (if (result i32) (local.get 0)
          (then (i32.add (call $cb (i32.sub (local.get 0) (i32.const 1))) (call $cb (i32.const 0))))
          (else (i32.const 0))))
      (func $recurse (export "recurse") (result i32) (i32.add (i32.const 1) (call $recurse)))
      (func (export "trap") unreachable)
      (func (export "loop") (loop (br 0)))
      (func (export "bulk") (param i32 i32 i32) (memory.fill (local.get 0) (local.get 1) (local.get 2)))
      (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0))))
    """,
    endless: ~S"""
    (module
      (import "env" "cb" (func $cb (param i32) (result i32)))
      (memory (export "memory") 1 2)
      (func (export "loop") (loop (br 0)))
      (func (export "f") (loop (drop (call $cb (i32.const 1))) (br 0)))
      (func (export "malloc") (param i32) (result i32) (loop (br 0)) unreachable)
      (func (export "free") (param i32) (loop (br 0))))
    """,
    wide: ~S"""
    (module
      (memory (export "memory") i64 1 16)
      (memory (export "second") 1 4)
      (func (export "malloc") (param i64) (result i64) (i64.const 0xffffffffffff))
      (func (export "free") (param i64))
      (func (export "f") (result i64) (i64.load (i64.const 8))))
    """,
    two: ~S"""
    (module
      (import "env" "memory" (memory 1 8))
      (memory (export "second") 0 4)
      (func (export "malloc") (param i32) (result i32) unreachable)
      (func (export "free") (param i32) unreachable)
      (func (export "bulk") (param i32 i32 i32)
        (memory.copy 0 1 (local.get 0) (local.get 1) (local.get 2))))
    """,
    liar: ~S"""
    (module
      (import "env" "cb" (func $cb (param i32) (result i32)))
      (memory (export "memory") 1 3)
      (func (export "malloc") (param i32) (result i32) (call $cb (local.get 0)))
      (func (export "free") (param i32) (drop (call $cb (local.get 0)))))
    """,
    odd_malloc: ~S"""
    (module (memory (export "memory") 0 0)
      (func (export "malloc") (param f32 i64) (result externref) (ref.null extern))
      (func (export "free") (result i32) (i32.const 1)))
    """,
    exceptions: ~S"""
    (module
      (import "env" "cb" (func $cb (param i32) (result i32)))
      (tag $t (param i32))
      (memory (export "memory") 1 1)
      (func (export "throw") (param i32) (throw $t (local.get 0)))
      (func (export "throw_through") (param i32) (result i32)
        (block $caught (result i32)
          (try_table (result i32) (catch $t $caught)
            (drop (call $cb (local.get 0)))
            (throw $t (i32.const 3))))))
    """,
    starts: ~S"""
    (module
      (import "env" "cb" (func $cb (param i32) (result i32)))
      (memory (export "memory") 1 1)
      (func $start (drop (call $cb (i32.const 0))))
      (start $start))
    """,
    empty: "(module)"
  ]

  @files ["demo", "reactor", "structs", "wasi"]

  ## Modules, once for the VM

  def load do
    texts = for {_name, text} <- @guests, do: text

    files =
      for name <- @files, do: File.read!(Path.join(Hostile.root(), "test/guests/#{name}.wasm"))

    modules = for source <- texts ++ files, do: Beamr.compile!(source)
    modules = modules ++ [Beamr.compile!(hd(texts), fuel: true)]
    artifacts = for module <- Enum.take(modules, 3), do: Beamr.Module.serialize(module)
    # Random calls compile these: no large ones, or they do nothing else.
    texts = ["(module)" | Enum.drop(texts, 1)]
    files = Enum.filter(files, &(byte_size(&1) < 4_000)) ++ [<<"\0asm", 1::little-32>>]
    put(modules: modules, texts: texts, files: files, artifacts: artifacts)

    Pool.new()
    fill(0, 0)
    calls = Api.load()
    stop_all()
    Pool.delete()
    length(calls)
  end

  defp put(items),
    do:
      for(
        {key, value} <- items,
        do: :persistent_term.put({__MODULE__, key}, List.to_tuple(value))
      )

  defp some(key) do
    tuple = :persistent_term.get({__MODULE__, key})
    elem(tuple, :rand.uniform(tuple_size(tuple)) - 1)
  end

  ## A round

  def calls_per_round, do: @calls_per_round

  @doc "Makes all calls of a round. `workers` is how many processes make them."
  def round(seed, round, workers \\ nil) do
    workers = workers || @workers
    Pool.new()
    fill(seed, round)
    per_worker = div(@calls_per_round, workers)
    Watch.run(workers, 1..per_worker, &step(seed, round, &1, &2), kills: true)
  after
    stop_all()
    Pool.delete()
  end

  defp fill(seed, round) do
    :rand.seed(:exsss, {seed, round, 0})
    # What a start function imports must not kill this process.
    Process.put(:hostile_depth, @deepest)
    Pool.fill(:module, fn _ -> some(:modules) end)
    Pool.fill(:wat, fn _ -> some(:texts) end)
    Pool.fill(:wasm, fn _ -> some(:files) end)
    Pool.fill(:artifact, fn _ -> some(:artifacts) end)
    Pool.fill(:victim, fn _ -> spawn(fn -> Process.sleep(:infinity) end) end)
    Pool.fill(:instance, fn _ -> make(:instance) end)
    Pool.fill(:raw, fn _ -> make(:instance).ref end)
    Pool.fill(:server, fn _ -> make(:server) end)
    Pool.fill(:wasi, fn _ -> wasi() end)
    Pool.fill(:layout, &layout/1)
    Pool.fill(:funcref, fn _ -> make(:funcref) end)
    for kind <- [:view, :allocator], do: Pool.fill(kind, fn _ -> make(kind) end)
  end

  # What all workers had, and what nobody frees by itself.
  defp stop_all do
    for kind <- [:server, :victim, :started], pid <- Pool.all(kind), is_pid(pid) do
      Process.exit(pid, :kill)
    end
  end

  defp make(:instance) do
    module = some(:modules)

    imports = %{
      "env" => %{
        "cb" => &__MODULE__.imported/2,
        "ext" => &__MODULE__.imported/2,
        "many" => &__MODULE__.imported/3,
        "memory" => {:memory, 1, 8}
      }
    }

    options = [imports: imports, wasi: [stdout: nil, stderr: nil], stubs: :zero, timeout: 50]

    case Beamr.instantiate(module, options) do
      {:ok, wasm} -> wasm
      {:error, _} -> Beamr.instantiate!("(module)")
    end
  end

  defp make(:server) do
    imports = %{
      "env" => %{
        "cb" => &__MODULE__.imported/2,
        "ext" => &__MODULE__.imported/2,
        "memory" => :memory
      }
    }

    options = [
      module: some(:modules),
      imports: imports,
      wasi: [stdout: nil, stderr: nil],
      stubs: :zero,
      timeout: 50,
      on_trap: Terms.pick([:stop, :reset, :keep])
    ]

    case unlinked(fn -> Beamr.Server.start_link(options) end) do
      {:ok, pid} -> pid
      _ -> Terms.pid()
    end
  end

  defp make(:view) do
    case Beamr.View.new(Pool.get(:instance), 1_024, 4_096) do
      {:ok, view} -> view
      {:error, _} -> nil
    end
  end

  defp make(:allocator) do
    made =
      case :rand.uniform(3) do
        1 ->
          unlinked(fn ->
            Beamr.Allocator.Bump.new(Pool.get(:instance), base: 1_024, limit: 65_536)
          end)

        2 ->
          unlinked(fn ->
            Beamr.Allocator.Stack.new(Pool.get(:instance), base: 1_024, size: 4_096)
          end)

        3 ->
          unlinked(fn -> Beamr.Allocator.Guest.new(Pool.get(:instance)) end)
      end

    with {:ok, allocator} <- made, do: allocator, else: (_ -> nil)
  rescue
    ArgumentError -> nil
  end

  defp make(:funcref) do
    case Beamr.Instance.table_get(Pool.get(:instance), "table", 0) do
      {:ok, ref} -> ref
      {:error, _} -> make_ref()
    end
  end

  # A start that fails must not end the one that starts, nor its end the other.
  defp unlinked(start) do
    trapped = Process.flag(:trap_exit, true)
    result = start.()

    case result do
      {:ok, pid} when is_pid(pid) -> unlink(pid)
      {:ok, %{pid: pid}} when is_pid(pid) -> unlink(pid)
      _ -> :ok
    end

    Process.flag(:trap_exit, trapped)
    result
  end

  defp unlink(pid) do
    Pool.note(pid)
    Process.unlink(pid)
  end

  defp wasi do
    {:ok, ref} =
      Beamr.Native.wasi_new({["a"], [{"k", "v"}], [], "input", nil, 1_024, nil, 7, false})

    ref
  end

  defp layout(n) do
    fields = [
      [x: :i32, y: :f64],
      [x: :i8, s: {:string, 8}, z: :bool],
      [points: {:array, {:struct, [x: :u16, y: :u64]}, 3}, x: :f32],
      [x: {:ptr, :string}, y: {:ptr, :i32}],
      [x: {:union, [a: :i32, b: :f64]}, y: {:enum, [on: 1, off: 0]}],
      [x: {:bytes, 5}]
    ]

    Beamr.Struct.new(Enum.at(fields, rem(n, length(fields))), [])
  end

  ## A call

  @doc "The call with this number of this worker; answers nothing."
  def step(seed, round, worker, index) do
    :rand.seed(:exsss, {seed, round, worker * 1_000_000 + index})
    Process.delete(:hostile_depth)
    Process.delete(:hostile_forged)
    if rem(index, 5) == 0, do: refresh()
    call(worker, index)
    flush()
  end

  # Guests are closed and die all the time; new ones come.
  defp refresh do
    case :rand.uniform(10) do
      n when n <= 4 -> Pool.put(:instance, make(:instance))
      5 -> Pool.put(:server, make(:server))
      6 -> Pool.put(:raw, make(:instance).ref)
      7 -> Pool.put(:view, make(:view))
      8 -> Pool.put(:allocator, make(:allocator))
      9 -> Pool.put(:funcref, make(:funcref))
      10 -> mischief()
    end
  end

  defp mischief do
    case :rand.uniform(5) do
      1 -> kill(Pool.get(:server))
      2 -> kill(Pool.get(:victim))
      3 -> Beamr.close(Pool.get(:instance))
      4 -> Beamr.interrupt(Pool.get(:instance))
      5 -> :erlang.garbage_collect()
    end
  end

  defp kill(pid) when is_pid(pid) and pid != self(), do: Process.exit(pid, :kill)
  defp kill(_other), do: true

  defp call(worker, index) do
    call = choose()
    args = arguments(call)
    Watch.journal(worker, index, call.module, call.name, args)
    answer = make_call(call, args)
    # Nobody is told why a forged handle does not work, only that nothing breaks.
    unless Process.get(:hostile_forged), do: Pool.keep(answer)
  end

  # Those that guests are made and run with come more often.
  defp choose do
    case :rand.uniform(100) do
      n when n <= 30 -> element(Api.nifs())
      n when n <= 45 -> common()
      _ -> element(Api.calls())
    end
  end

  defp element(tuple), do: elem(tuple, :rand.uniform(tuple_size(tuple)) - 1)

  defp common do
    name = Terms.pick([:call, :call, :call, :call, :call!, :instantiate, :interrupt, :close])
    calls = for %{module: Beamr, name: ^name} = call <- Tuple.to_list(Api.calls()), do: call
    Terms.pick(calls)
  end

  defp arguments(%{module: Beamr.Native, name: name} = call) do
    args = generated(call)

    cond do
      Terms.chance(10) ->
        args

      name in [:wasi_new, :wasi_new_dirty] ->
        [Terms.wasi_tuple()]

      name in [:instance_start, :instance_start_dirty] ->
        List.replace_at(args, 1, Terms.native_options())

      name in [:export_perform, :export_perform_dirty] ->
        List.replace_at(args, 1, Terms.verb())

      true ->
        args
    end
  end

  # Most calls of a guest name a function that it has, with as many arguments as that takes.
  defp arguments(%{module: module, name: name} = call)
       when module in [Beamr, :beamr] and name in [:call, :call!] do
    [guest, function, args | rest] = generated(call)

    if Terms.chance(75),
      do: fitting(guest, function, args, rest),
      else: [guest, function, args | rest]
  end

  defp arguments(call), do: generated(call)

  defp generated(%{types: types, arity: arity} = call) do
    args = for type <- types, do: Terms.of(type, call)
    args ++ for _ <- (length(args) + 1)..arity//1, do: Terms.any()
  end

  defp fitting(guest, function, args, rest) do
    with %Beamr.Instance{module: %Beamr.Module{} = module} <- guest,
         [_ | _] = functions <-
           for({name, {:function, type}} <- Beamr.Module.exports(module), do: {name, type}) do
      {name, %{params: params}} = Terms.pick(functions)
      [guest, name, Enum.map(params, &fitting/1) | rest]
    else
      _ -> [guest, function, args | rest]
    end
  end

  defp fitting(type) do
    case type do
      :i32 -> Terms.uniform(256) - 1
      :i64 -> Terms.uniform(2 ** 62)
      :f32 -> 1.5
      :f64 -> Terms.float()
      :v128 -> :crypto.hash(:md5, "")
      :funcref -> Terms.pick([nil, Pool.get(:funcref)])
      _ -> Terms.any()
    end
  end

  defp make_call(%{module: module, name: name, arity: arity}, args) do
    result = apply(module, name, args)
    count(if match?({:error, _}, result), do: :errors, else: :answers)
    check(result, {module, name, arity})
    follow(module, args, result)
    result
  rescue
    error ->
      count(:raises)
      raised(error, {module, name, arity}, __STACKTRACE__)
  catch
    _kind, _reason -> count(:exits)
  end

  defp count(what), do: :ets.update_counter(Hostile.Counts, what, 1, {what, 0})

  defp check({:error, error}, mfa) when is_exception(error) do
    case error do
      %{reason: :system, detail: "a defect" <> _} -> Watch.find(:panic, {mfa, error})
      _ -> :ok
    end

    message(error, mfa)
  end

  defp check({:error, :panicked}, mfa), do: Watch.find(:panic, mfa)
  defp check({_ref, {:error, :panicked}}, mfa), do: Watch.find(:panic, mfa)

  # beamr:format_error/1 takes exceptions.
  defp check({:error, %{reason: reason} = error}, {:beamr, _, _} = mfa) do
    Watch.find(:message, {mfa, reason}, error)
  end

  defp check(_result, _mfa), do: :ok

  # Elixir makes a text of what a message/1 raises.
  defp message(%struct{} = error, mfa) do
    struct.message(error)
  rescue
    raised ->
      Watch.find(:message, {mfa, struct, Map.get(error, :reason), raised.__struct__}, error)
  end

  # Steps that the NIFs answer are taken further, most of the time.
  defp follow(Beamr.Native, [ref | _], step), do: drive(ref, step, 20)
  defp follow(_module, _args, _result), do: :ok

  defp drive(_ref, _step, 0), do: :ok

  defp drive(_this, {ref, step}, n) when is_reference(ref), do: drive(ref, step, n)

  defp drive(ref, step, n) do
    if is_reference(ref) and step?(step) and Terms.chance(90) do
      answer =
        if match?({:import, _, _}, step),
          do: Terms.pick([:return, :return, :raise]),
          else: :continue

      nif = Terms.pick([:call_resume, :call_resume_dirty])
      next = apply(Beamr.Native, nif, [ref, answer, Terms.value()])
      check(next, {Beamr.Native, nif, 3})
      drive(ref, next, n - 1)
    end
  end

  defp step?(:yield), do: true
  defp step?(:dirty), do: true
  defp step?({:import, _, _}), do: true
  defp step?(_step), do: false

  @refusals [ArgumentError, FunctionClauseError, UndefinedFunctionError, UnicodeConversionError] ++
              [RuntimeError]

  defp raised(%ErlangError{original: :nif_panicked}, mfa, stacktrace),
    do: Watch.find(:panic, mfa, stacktrace)

  defp raised(%ErlangError{original: original}, mfa, _stacktrace) do
    if original != :system_limit, do: Watch.find(:odd, {mfa, :erlang_error})
  end

  # What a caller does wrong is refused by a guard or an ArgumentError, as said; the errors with
  # `!` are Beamr's own.
  defp raised(%struct{} = error, mfa, stacktrace) do
    cond do
      struct in @refusals or Process.get(:hostile_forged) -> :ok
      match?("Elixir.Beamr." <> _, "#{struct}") -> check({:error, error}, mfa)
      true -> Watch.find(:odd, {mfa, struct, Enum.find(stacktrace, &ours?/1) |> place()})
    end
  end

  defp ours?({module, _, _, _}), do: String.starts_with?("#{module}", ["Elixir.Beamr", "beamr"])
  defp place(nil), do: nil

  defp place({module, name, args, at}),
    do: {module, name, if(is_list(args), do: length(args), else: args), at[:line]}

  # What is left in the mailbox by a call that is over would fill it in the end.
  defp flush do
    receive do
      {tag, _ref} when tag in [:beamr_turn, :beamr_wake] ->
        # NIFs that were called by themselves answer to nobody.
        flush()

      _other ->
        flush()
    after
      0 -> :ok
    end
  end

  ## What guests and Beamr call back

  def imported(wasm, n), do: callback([wasm, n])
  def imported(wasm, a, b), do: callback([wasm, a, b])
  def wait(_wasm), do: Process.sleep(5)

  def callback(args) do
    if :rand.export_seed() == :undefined, do: :rand.seed(:exsss, {1, 2, 3})
    depth = Process.get(:hostile_depth, 0)
    Process.put(:hostile_depth, depth + 1)

    try do
      act(:rand.uniform(20), args, depth)
    after
      Process.put(:hostile_depth, depth)
    end
  end

  defp act(n, args, depth) when n in 8..11 and depth < @deepest do
    call = choose()
    nested = arguments(call)
    # On the guest itself, where it fits.
    nested =
      if nested != [] and is_struct(hd(nested), Beamr.Instance),
        do: [hd(args) | tl(nested)],
        else: nested

    make_call(call, nested)
  end

  defp act(12, _args, _depth), do: raise("hostile")
  defp act(13, _args, _depth), do: throw(:hostile)
  defp act(14, _args, _depth), do: exit(:hostile)
  defp act(15, _args, _depth), do: Process.sleep(:rand.uniform(5))
  defp act(16, _args, _depth), do: Terms.any()

  defp act(17, [%Beamr.Instance{} = wasm | _], _depth) do
    if Terms.chance(10), do: Beamr.close(wasm), else: Beamr.interrupt(wasm)
  end

  defp act(18, _args, depth) when depth < @deepest do
    if Terms.chance(3), do: Process.exit(self(), :kill)
  end

  defp act(19, _args, _depth), do: [1, 1.5]
  defp act(n, [_wasm, arg | _], _depth) when n in 4..7, do: arg
  defp act(_n, _args, _depth), do: Terms.uniform(100)
end
