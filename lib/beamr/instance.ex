defmodule Beamr.Instance do
  @moduledoc """
  One module's live state: its memories, globals and tables.

  An instance is a handle that any process of the node may use, as with an ETS table or an open
  file. It is made by `Beamr.instantiate/2`. It lives until `Beamr.close/1`, or until nothing
  refers to it any more; it does not die with the process that made it.

  One call runs at a time. A process that calls a busy instance waits for its turn, first come,
  first served; memory can be read and written meanwhile.
  """

  import Beamr.Guest, only: [is_guest: 1]

  alias Beamr.{
    Error,
    ExportError,
    Guest,
    Host,
    Import,
    ImportError,
    LinkError,
    Module,
    Native,
    Telemetry,
    WASI
  }

  @enforce_keys [:ref, :module, :imports]
  defstruct [:ref, :module, :imports]

  @typedoc "An instance. Its fields are private."
  @type t :: %__MODULE__{ref: reference(), module: Module.t(), imports: tuple()}

  @typedoc """
  Imports by module and name: functions, memories, globals and tables.

  A function takes the instance first and then the guest's arguments, and runs in the process
  that made the call. An import with no results may return anything, one with one result returns
  it, one with several returns a list of them. `{:list, function}` in a function's place is called
  with the instance and the list of the arguments, whatever their number.
  `{:function, params, results, function}` has the signature checked, and a list of these is chosen
  from by it: see `Beamr.Host`.

  Memories, globals and tables are made for the instance, for each one its own; an import never
  stands for what another instance has. Their types are the module's own.

    * `{:memory, minimum}` or `{:memory, minimum, maximum}` is a memory of `minimum` pages that
      can grow to `maximum` (none where it is left out, nil or `:infinity`); `:memory` takes both
      from the module.
    * `{:global, value}` is a global that begins with the value; `:global` begins with zero, or
      null.
    * `{:table, minimum}` or `{:table, minimum, maximum}` is a table of that many null elements;
      `:table` takes both from the module.

  The guest's memory is then reached as any other is, see `Beamr.IO`; globals and tables by
  `get_global/2`, `table_get/3` and so on, under the name of the import where the module does not
  export something else under it.

      iex> source = ~s|(module (import "env" "memory" (memory 1 4))
      ...>   (import "env" "base" (global $base i32)) (func (export "base") (result i32) (global.get $base)))|
      iex> env = %{"memory" => {:memory, 2, 4}, "base" => {:global, 1024}}
      iex> wasm = Beamr.instantiate!(source, imports: %{"env" => env})
      iex> Beamr.call(wasm, "base", [])
      {:ok, [1024]}
      iex> Beamr.IO.size(wasm)
      {:ok, 131072}
  """
  @type imports :: %{optional(String.t()) => %{optional(String.t()) => import_value()}}

  @typedoc "What is given for one import, see `t:imports/0`."
  @type import_value ::
          function()
          | {:list, (t(), [Beamr.value()] -> term())}
          | Host.signed()
          | :memory
          | {:memory, minimum :: non_neg_integer()}
          | {:memory, minimum :: non_neg_integer(), maximum :: limit()}
          | :global
          | {:global, Beamr.value()}
          | :table
          | {:table, minimum :: non_neg_integer()}
          | {:table, minimum :: non_neg_integer(), maximum :: limit()}

  @typep limit :: non_neg_integer() | nil | :infinity

  @typedoc """
  Where the slices of a call run.

    * `:auto` - the first on the caller's own scheduler, those after it on dirty CPU schedulers,
      so that long calls stay out of everybody's way;
    * `:normal` - all on normal schedulers, where the priority of the calling process rules;
    * `:dirty` - all on dirty CPU schedulers.

  A slice on a normal scheduler lasts 0.2 to 0.4 milliseconds, and up to 1 where the call's
  timeout is that near. One on a dirty scheduler lasts 1 millisecond while other guests wait for
  a scheduler and 5 while none does; where the timeout would be over before the next slice, it
  lasts until then, up to 10 more. Who reads or writes the guest's memory, interrupts the call or
  closes the instance meanwhile waits for a fifth of a millisecond.
  """
  @type scheduler :: :auto | :normal | :dirty

  @typep options :: %{
           timeout: timeout(),
           scheduler: scheduler(),
           max_depth: pos_integer(),
           max_memory: non_neg_integer() | nil,
           max_table_elements: non_neg_integer() | nil,
           fuel: non_neg_integer() | nil,
           wasi: map() | nil
         }

  @timeout 5_000
  @longest_wait 0xFFFFFFFF

  # A slice on a normal scheduler lasts as long as the timeslices of this many Elixir processes,
  # so that many get their turn after it.
  @turns_per_slice 8
  @doc false
  @spec new(Module.t(), imports(), options()) :: {:ok, t()} | {:error, Exception.t()}
  def new(%Module{} = module, imports, options) do
    if Telemetry.on?() do
      metadata = %{module: Module.name(module)}
      Telemetry.span(:instantiate, metadata, fn -> make(module, imports, options) end)
    else
      make(module, imports, options)
    end
  end

  defp make(module, imports, options) do
    with {:ok, functions, given} <- link(module, imports, options.wasi),
         {:ok, granted} <- WASI.grant(options.wasi, functions) do
      timeout = milliseconds(within_outer(options.timeout))

      native_options =
        {timeout, options.max_depth, options.max_memory, options.max_table_elements, options.fuel,
         granted}

      {ref, step} =
        case Native.instance_start(module.ref, native_options, given) do
          :dirty -> Native.instance_start_dirty(module.ref, native_options, given)
          started -> started
        end

      imports = List.to_tuple(functions ++ WASI.streams(options.wasi))
      instance = %__MODULE__{ref: ref, module: module, imports: imports}

      case finish(step, instance, options.scheduler, nil) do
        {:ok, []} -> {:ok, instance}
        {:error, reason} -> {:error, Error.call(reason, nil, [])}
      end
    end
  end

  # The functions of the imports, by the import's index, and what is given for the others; or
  # every import that does not fit.
  defp link(module, imports, wasi) do
    imports = Host.open(imports, module)
    linked = Enum.map(Module.imports(module), &link_one(&1, imports, wasi))

    # Nearly always there are functions only, and they fit.
    case for({_kind, _value} = other <- linked, do: other) do
      [] -> {:ok, linked, []}
      others -> link_others(others, linked, module)
    end
  end

  defp link_others(others, functions, module) do
    {others, _count} =
      Enum.map_reduce(others, 0, fn
        {:item, {import, value}}, n -> {Import.make(import, value, n, module), n + 1}
        problem, n -> {problem, n}
      end)

    case for({:problem, problem} <- others, do: problem) do
      [] -> {:ok, functions, for({:ok, given} <- others, do: given)}
      problems -> {:error, %LinkError{imports: problems}}
    end
  end

  defp link_one({module, name, {:function, %{params: params}} = type}, imports, wasi) do
    case given(imports, module, name) do
      {:ok, function} when is_function(function, length(params) + 1) -> {module, name, function}
      {:ok, value} -> signed(module, name, type, value)
      :error when wasi == nil -> from_hosts(imports, module, name, type)
      :error -> link_wasi(WASI.signature(module, name), module, name, type, imports)
    end
  end

  defp link_one({module, name, _type} = import, imports, _wasi) do
    {:item, {import, given(imports, module, name)}}
  end

  defp link_wasi(nil, module, name, type, imports), do: from_hosts(imports, module, name, type)
  defp link_wasi(type, module, name, type, _imports), do: {module, name, :wasi}
  defp link_wasi(wasi, module, name, type, _imports), do: problem(module, name, :type, type, wasi)

  defp given(imports, module, name) do
    case imports do
      %{^module => %{^name => value}} -> {:ok, value}
      _ -> :error
    end
  end

  defp signed(module, name, type, value) do
    case Host.fit(value, type) do
      {:ok, function} -> {module, name, function}
      :error -> problem(module, name, :type, type, Host.given(value))
    end
  end

  defp from_hosts(imports, module, name, type) do
    case Host.find(imports, module, name, type) do
      {:ok, function} ->
        {module, name, function}

      {:wrong, [given | _]} ->
        with {:problem, _missing} <- otherwise(imports, module, name, type),
             do: problem(module, name, :type, type, given)

      :error ->
        otherwise(imports, module, name, type)
    end
  end

  # Beside the maps there may be a function, named so that new code of it is used, that is called
  # for all imports that are not in them.
  defp otherwise(%{otherwise: {_module, _function, _args} = mfa}, module, name, _type) do
    {module, name, {:otherwise, mfa, {module, name}}}
  end

  defp otherwise(%{stubs: stub}, module, name, {:function, type}) do
    {module, name, Host.stub_function(stub, module, name, type)}
  end

  defp otherwise(_imports, module, name, type) do
    {:problem, problem} = problem(module, name, :missing, type, nil)

    case Host.known(module, name, type) do
      nil -> {:problem, problem}
      host -> {:problem, Map.put(problem, :host, host)}
    end
  end

  defp problem(module, name, problem, wanted, given) do
    Import.problem({module, name, wanted}, problem, given)
  end

  @doc false
  # `unsigned` makes integer results unsigned: pointers are.
  # With a `client`, the call is made for that process and ends when it dies.
  @spec call(
          t(),
          String.t() | Beamr.funcref(),
          [term()],
          timeout(),
          scheduler(),
          boolean(),
          pid() | nil
        ) :: {:ok, [term()]} | {:error, Exception.t()}
  def call(instance, function, args, timeout, scheduler, unsigned, client \\ nil) do
    if Telemetry.on?() do
      metadata = %{module: Module.name(instance.module), function: function}

      Telemetry.call_span(metadata, fn -> Native.memory_size(instance.ref, nil) end, fn ->
        run(instance, function, args, timeout, scheduler, unsigned, client)
      end)
    else
      run(instance, function, args, timeout, scheduler, unsigned, client)
    end
  end

  defp run(%{ref: ref} = instance, function, args, timeout, scheduler, unsigned, client) do
    timeout = milliseconds(within_outer(timeout))

    case start(ref, function, args, timeout, scheduler, unsigned) do
      {:ok, _results} = ok ->
        ok

      {:error, reason} ->
        {:error, Error.call(reason, function, args)}

      step ->
        with {:error, reason} <- finish(step, instance, scheduler, client) do
          {:error, Error.call(reason, function, args)}
        end
    end
  end

  # While a call is driven, its instance is in the process dictionary: calls inside its imports,
  # of whatever guest, have no more time than it has left. (The key is an atom because it is
  # looked up in every call, and those are the fastest.)
  @outer :"$beamr_outer"

  defp finish(step, %{ref: ref} = instance, scheduler, client) do
    outer = :erlang.put(@outer, ref)

    try do
      drive(step, instance, scheduler, client)
    after
      if outer == :undefined, do: :erlang.erase(@outer), else: :erlang.put(@outer, outer)
    end
  end

  @doc false
  @spec within_outer(timeout()) :: timeout()
  def within_outer(timeout) do
    case :erlang.get(@outer) do
      :undefined -> timeout
      # Every number is less than :infinity.
      ref -> min(timeout, Native.call_time_left(ref))
    end
  end

  defp milliseconds(:infinity), do: -1
  defp milliseconds(timeout), do: timeout

  defp start(ref, function, args, timeout, scheduler, unsigned) do
    step =
      case scheduler do
        :dirty -> :dirty
        _ -> Native.call_start(ref, function, args, timeout, unsigned)
      end

    step =
      case step do
        :dirty -> Native.call_start_dirty(ref, function, args, timeout, unsigned)
        step -> step
      end

    case step do
      {:queue, turn} ->
        again = &start(ref, function, args, &1, scheduler, unsigned)
        await_turn(ref, turn, timeout, again)

      step ->
        step
    end
  end

  # The instance is busy with another process's call: wait until it calls this process up.
  defp await_turn(ref, turn, timeout, again) do
    started = System.monotonic_time(:millisecond)

    receive do
      {:beamr_turn, ^turn} ->
        waited = System.monotonic_time(:millisecond) - started
        again.(remaining(timeout, waited))
    after
      receive_timeout(timeout) ->
        # If the turn came at the last moment, its message is here or on its way.
        unless Native.instance_leave(ref) do
          receive do
            {:beamr_turn, ^turn} -> :ok
          after
            1_000 -> :ok
          end
        end

        {:error, :timeout}
    end
  end

  defp remaining(-1, _waited), do: -1
  defp remaining(timeout, waited), do: max(timeout - waited, 0)

  defp receive_timeout(-1), do: :infinity
  defp receive_timeout(timeout), do: timeout

  # Runs a call step by step to its end. Everything that can run guest code ends up here.
  defp drive({:ok, _results} = ok, _instance, _scheduler, _client), do: ok
  defp drive({:error, _reason} = error, _instance, _scheduler, _client), do: error

  defp drive(:yield, %{ref: ref} = instance, scheduler, client) do
    if client != nil and not Process.alive?(client), do: Native.instance_interrupt(ref)
    if scheduler == :normal, do: give_way(@turns_per_slice)
    later = if scheduler == :auto, do: :dirty, else: scheduler
    ref |> resume(:continue, nil, later) |> drive(instance, scheduler, client)
  end

  # The guest waits for a clock or a file: it is woken by a message.
  defp drive({:wait, wait}, %{ref: ref} = instance, scheduler, client) do
    await_wake(ref, wait, client)
    ref |> resume(:continue, nil, scheduler) |> drive(instance, scheduler, client)
  end

  defp drive({:import, index, args}, %{ref: ref} = instance, scheduler, client) do
    {module, name, function} = elem(instance.imports, index)

    try do
      call_import(function, instance, args)
    catch
      kind, reason ->
        stacktrace = __STACKTRACE__

        case resume(ref, :raise, nil, scheduler) do
          {:error, :raised} ->
            {:error,
             %ImportError{
               module: module,
               name: name,
               kind: kind,
               reason: reason,
               stacktrace: stacktrace
             }}

          step ->
            drive(step, instance, scheduler, client)
        end
    else
      value ->
        case resume(ref, :return, value, scheduler) do
          {:error, :import_result} -> {:error, bad_result(instance, index, value)}
          step -> drive(step, instance, scheduler, client)
        end
    end
  end

  # Also comes back when the guest has to end, which it finds out for itself.
  defp await_wake(ref, wait, nil) do
    receive do
      {:beamr_wake, ^wait} -> :ok
    after
      time_left(ref) -> disarm(ref, wait)
    end
  end

  defp await_wake(ref, wait, client) do
    monitor = Process.monitor(client)

    receive do
      {:beamr_wake, ^wait} ->
        :ok

      {:DOWN, ^monitor, :process, _pid, _reason} ->
        Native.instance_interrupt(ref)
        disarm(ref, wait)
    after
      time_left(ref) -> disarm(ref, wait)
    end

    Process.demonitor(monitor, [:flush])
  end

  # If the guest was woken at the last moment, the message is here or on its way.
  defp disarm(ref, wait) do
    unless Native.wasi_disarm(ref) do
      receive do
        {:beamr_wake, ^wait} -> :ok
      after
        1_000 -> :ok
      end
    end
  end

  # No longer than `receive` can wait, after which the guest waits again.
  defp time_left(ref) do
    case Native.call_time_left(ref) do
      :infinity -> :infinity
      milliseconds -> min(milliseconds, @longest_wait)
    end
  end

  defp give_way(0), do: :ok

  defp give_way(turns) do
    :erlang.yield()
    give_way(turns - 1)
  end

  defp call_import({:list, function}, instance, args), do: function.(instance, args)

  defp call_import({:otherwise, {module, function, extra}, import}, instance, args) do
    apply(module, function, extra ++ [import, instance, args])
  end

  defp call_import(function, instance, args), do: apply(function, [instance | args])

  defp resume(ref, answer, value, :dirty), do: Native.call_resume_dirty(ref, answer, value)

  defp resume(ref, answer, value, _scheduler) do
    case Native.call_resume(ref, answer, value) do
      :dirty -> Native.call_resume_dirty(ref, answer, value)
      step -> step
    end
  end

  defp bad_result(instance, index, value) do
    {module, name, {:function, %{results: results}}} =
      instance.module |> Module.imports() |> Enum.at(index)

    %ImportError{
      module: module,
      name: name,
      kind: :result,
      reason: :bad_result,
      wanted: results,
      given: value
    }
  end

  @doc """
  The fuel that is left. Only modules compiled with `fuel: true` use any; an instance that was
  given none at its start has as good as endless fuel.

      iex> module = Beamr.compile!("(module)", fuel: true)
      iex> Beamr.Instance.fuel(Beamr.instantiate!(module, fuel: 1_000))
      {:ok, 1000}
  """
  @spec fuel(Beamr.guest()) :: {:ok, non_neg_integer()} | {:error, ExportError.t()}
  def fuel(guest) when is_guest(guest), do: perform(guest, :fuel, {:fuel, nil}, nil, nil, nil)

  @doc "As `fuel/1`, but raises the error."
  @spec fuel!(Beamr.guest()) :: non_neg_integer()
  def fuel!(guest), do: guest |> fuel() |> Error.unwrap!()

  @doc """
  Adds fuel, and answers what there is then (2^64 - 1 at most).

      iex> module = Beamr.compile!(~s|(module (func (export "loop") (loop (br 0))))|, fuel: true)
      iex> wasm = Beamr.instantiate!(module, fuel: 1_000)
      iex> {:error, trap} = Beamr.call(wasm, "loop", [])
      iex> trap.reason
      :out_of_fuel
      iex> Beamr.Instance.add_fuel(wasm, 500)
      {:ok, 500}
  """
  @spec add_fuel(Beamr.guest(), non_neg_integer()) ::
          {:ok, non_neg_integer()} | {:error, ExportError.t()}
  def add_fuel(guest, amount) when is_guest(guest) and is_integer(amount) and amount >= 0 do
    perform(guest, :add_fuel, {:fuel, nil}, amount, nil, amount)
  end

  @doc "As `add_fuel/2`, but raises the error."
  @spec add_fuel!(Beamr.guest(), non_neg_integer()) :: non_neg_integer()
  def add_fuel!(guest, amount), do: guest |> add_fuel(amount) |> Error.unwrap!()

  @doc """
  The value of a global, by the name of its export, or else of its import.

      iex> wasm = Beamr.instantiate!(~s|(module (global (export "answer") i32 (i32.const 42)))|)
      iex> Beamr.Instance.get_global(wasm, "answer")
      {:ok, 42}
  """
  @spec get_global(Beamr.guest(), String.t()) :: {:ok, Beamr.value()} | {:error, ExportError.t()}
  def get_global(guest, name) when is_guest(guest) and is_binary(name) do
    perform(guest, :global_get, {:global, name}, nil, nil, nil)
  end

  @doc "As `get_global/2`, but raises the error."
  @spec get_global!(Beamr.guest(), String.t()) :: Beamr.value()
  def get_global!(guest, name), do: guest |> get_global(name) |> Error.unwrap!()

  @doc """
  Sets a mutable global.

      iex> wasm = Beamr.instantiate!(~s|(module (global (export "level") (mut f64) (f64.const 0)))|)
      iex> Beamr.Instance.set_global(wasm, "level", 0.5)
      :ok
      iex> Beamr.Instance.get_global(wasm, "level")
      {:ok, 0.5}
  """
  @spec set_global(Beamr.guest(), String.t(), Beamr.value()) :: :ok | {:error, ExportError.t()}
  def set_global(guest, name, value) when is_guest(guest) and is_binary(name) do
    perform(guest, :global_set, {:global, name}, nil, value, value)
  end

  @doc "As `set_global/3`, but raises the error."
  @spec set_global!(Beamr.guest(), String.t(), Beamr.value()) :: :ok
  def set_global!(guest, name, value), do: guest |> set_global(name, value) |> Error.unwrap!()

  @doc """
  The number of elements in a table, by the name of its export, or else of its import.

      iex> wasm = Beamr.instantiate!(~s|(module (table (export "t") 3 funcref))|)
      iex> Beamr.Instance.table_size(wasm, "t")
      {:ok, 3}
  """
  @spec table_size(Beamr.guest(), String.t()) ::
          {:ok, non_neg_integer()} | {:error, ExportError.t()}
  def table_size(guest, name) when is_guest(guest) and is_binary(name) do
    perform(guest, :table_size, {:table, name}, nil, nil, nil)
  end

  @doc "As `table_size/2`, but raises the error."
  @spec table_size!(Beamr.guest(), String.t()) :: non_neg_integer()
  def table_size!(guest, name), do: guest |> table_size(name) |> Error.unwrap!()

  @doc """
  An element of a table. Functions can be called by what this answers.

      iex> wasm = Beamr.instantiate!(~s|(module (table (export "t") funcref (elem $seven))
      ...>   (func $seven (result i32) (i32.const 7)))|)
      iex> {:ok, seven} = Beamr.Instance.table_get(wasm, "t", 0)
      iex> Beamr.call(wasm, seven, [])
      {:ok, [7]}
  """
  @spec table_get(Beamr.guest(), String.t(), non_neg_integer()) ::
          {:ok, Beamr.value()} | {:error, ExportError.t()}
  def table_get(guest, name, index)
      when is_guest(guest) and is_binary(name) and is_integer(index) and index >= 0 do
    perform(guest, :table_get, {:table, name}, index, nil, index)
  end

  @doc "As `table_get/3`, but raises the error."
  @spec table_get!(Beamr.guest(), String.t(), non_neg_integer()) :: Beamr.value()
  def table_get!(guest, name, index), do: guest |> table_get(name, index) |> Error.unwrap!()

  @doc "Sets an element of a table: a function of the same instance, any term, or nil."
  @spec table_set(Beamr.guest(), String.t(), non_neg_integer(), Beamr.value()) ::
          :ok | {:error, ExportError.t()}
  def table_set(guest, name, index, value)
      when is_guest(guest) and is_binary(name) and is_integer(index) and index >= 0 do
    case perform(guest, :table_set, {:table, name}, index, value, value) do
      {:error, %{reason: :out_of_bounds} = error} -> {:error, %{error | given: index}}
      result -> result
    end
  end

  @doc "As `table_set/4`, but raises the error."
  @spec table_set!(Beamr.guest(), String.t(), non_neg_integer(), Beamr.value()) :: :ok
  def table_set!(guest, name, index, value) do
    guest |> table_set(name, index, value) |> Error.unwrap!()
  end

  @doc """
  Grows a table by `delta` elements set to `value`; answers its size before. A growth
  that is refused changes nothing.

      iex> wasm = Beamr.instantiate!(~s|(module (table (export "t") 1 2 externref))|)
      iex> Beamr.Instance.table_grow(wasm, "t", 1, :new)
      {:ok, 1}
      iex> Beamr.Instance.table_get(wasm, "t", 1)
      {:ok, :new}
      iex> {:error, error} = Beamr.Instance.table_grow(wasm, "t", 1, :new)
      iex> error.reason
      :cannot_grow
  """
  @spec table_grow(Beamr.guest(), String.t(), non_neg_integer(), Beamr.value()) ::
          {:ok, non_neg_integer()} | {:error, ExportError.t()}
  def table_grow(guest, name, delta, value)
      when is_guest(guest) and is_binary(name) and is_integer(delta) and delta >= 0 do
    case perform(guest, :table_grow, {:table, name}, delta, value, value) do
      {:error, %{reason: :cannot_grow} = error} -> {:error, %{error | given: delta}}
      result -> result
    end
  end

  @doc "As `table_grow/4`, but raises the error."
  @spec table_grow!(Beamr.guest(), String.t(), non_neg_integer(), Beamr.value()) ::
          non_neg_integer()
  def table_grow!(guest, name, delta, value) do
    guest |> table_grow(name, delta, value) |> Error.unwrap!()
  end

  @doc false
  # Does what needs the store and runs no guest code: at once when the instance is idle or inside
  # an import, else when its turn has come.
  @spec perform(Beamr.guest(), atom(), {atom(), String.t() | nil}, term(), term(), term()) ::
          :ok | {:ok, term()} | {:error, ExportError.t()}
  def perform(guest, verb, {_kind, name} = export, index, value, given) do
    case Guest.place(guest, {__MODULE__, verb, [guest, name]}) do
      {:instance, ref} ->
        perform_on(ref, verb, export, index, value, given)

      {:remote, node, guest} ->
        Guest.remote(node, __MODULE__, :perform, [guest, verb, export, index, value, given])
    end
  end

  defp perform_on(ref, verb, {_kind, name} = export, index, value, given) do
    case attempt(ref, verb, name || "", index, value) do
      {:error, reason} -> {:error, Error.export(reason, export, given)}
      result -> result
    end
  end

  @doc false
  # As `perform/6`, for an instance's reference; errors are the native half's reasons.
  @spec attempt(reference(), atom(), String.t(), term(), term(), integer()) ::
          :ok | {:ok, term()} | {:error, term()}
  def attempt(ref, verb, name, index, value, timeout \\ @timeout) do
    result =
      case Native.export_perform(ref, verb, name, index, value) do
        :dirty -> Native.export_perform_dirty(ref, verb, name, index, value)
        result -> result
      end

    case result do
      {:queue, turn} ->
        await_turn(ref, turn, timeout, &attempt(ref, verb, name, index, value, &1))

      result ->
        result
    end
  end

  defimpl Inspect do
    def inspect(%{module: module}, _opts) do
      case Beamr.Module.name(module) do
        nil -> "#Beamr.Instance<unnamed>"
        name -> "#Beamr.Instance<#{name}>"
      end
    end
  end
end
