defmodule Beamr.Server do
  @moduledoc """
  A process that owns an instance, for supervision trees.

      children = [
        {Beamr.Server, name: Calculator, module: "priv/calculator.wasm"}
      ]

  Its pid or name stands for the instance everywhere: `Beamr.call(Calculator, "add", [1, 2])`,
  `Beamr.IO.read(Calculator, 0, 16)`. On a cluster the same goes for servers on other nodes.

  Calls run in the server, one after the other, and so do the imports they call. Memory, globals
  and tables are reached without the server's mailbox, also while it is in a call. When the
  process that made a call dies, the call is ended. A dead pid or an unknown name exits with
  `:noproc`.

  ## When the guest traps

  The caller gets the error in any case. Then, by `on_trap:`,

    * `:stop` (the default): the server stops with the reason `{:trap, %Beamr.Trap{}}`, and its
      supervisor may start it afresh;
    * `:reset`: the server makes itself a fresh instance, and keeps its pid;
    * `:keep`: the server goes on with the instance as the trap left it.

  A timeout, an interrupt, a failed import or an exit is no trap: the server goes on. A server whose
  instance is gone stops with the reason `:closed`.

  ## Imports with state

  Imports given as functions run in the server. To let imports see and change a state, write a
  module:

      defmodule Counter do
        use Beamr.Server

        @impl true
        def init(start), do: {:ok, start}

        @impl true
        def handle_import({"env", "next"}, [step], _wasm, count) do
          {:reply, count, count + step}
        end

        @impl true
        def handle_call(:count, _from, count), do: {:reply, count, count}
      end

      {:ok, counter} = Counter.start_link(module: wasm, arg: 0)
      Beamr.call(counter, "run", [])
      GenServer.call(counter, :count)

  `c:handle_import/4` gets what none of `imports:`, `wasi:` and `hosts:` has. The other callbacks are GenServer's,
  for messages of the server's own. Inside them, `run/4` calls the guest with a state.

  Or keep a `Beamr.Instance` in the state of any GenServer: an instance needs no server of its
  own. Its calls then run in whichever process makes them.

  ## Many

  There is no pool here, because OTP has what it takes:

      {PartitionSupervisor, name: Guests, child_spec: {Beamr.Server, module: module}}
      Beamr.call({:via, PartitionSupervisor, {Guests, key}}, "handle", [1])

      {:ok, pid} = DynamicSupervisor.start_child(Supervisor, {Beamr.Server, module: module})
      {Beamr.Server, module: module, name: {:via, Registry, {Registry, "tenant"}}}
      :pg.join(:guests, pid)

  One compiled module serves any number of servers. `child_spec/1` compiles bytes, text or a
  file once, so that a restart costs an instantiation and never a compilation.
  """

  use GenServer

  alias Beamr.{CallError, Guest, Instance, Trap}

  @typedoc "What a guest calls: the names of its import."
  @type import_name :: {module :: String.t(), name :: String.t()}

  @doc "Called when the server starts, before the instance is made. `arg` is the option's value."
  @callback init(arg :: term()) ::
              {:ok, state :: term()}
              | {:ok, state :: term(), {:continue, term()} | :hibernate | timeout()}
              | {:stop, reason :: term()}
              | :ignore

  @doc """
  Called for each import that `imports:` does not have. `wasm` is the instance; the result is
  what a function in `imports:` would return. What it raises ends the guest's call. Not needed
  where `imports:`, `wasi:` and `hosts:` have everything.
  """
  @callback handle_import(import_name(), args :: [Beamr.value()], Instance.t(), state :: term()) ::
              {:reply, result :: term(), state :: term()}

  @doc "GenServer's, for requests that are no calls of the guest."
  @callback handle_call(request :: term(), GenServer.from(), state :: term()) :: term()
  @doc "GenServer's."
  @callback handle_cast(request :: term(), state :: term()) :: term()
  @doc "GenServer's."
  @callback handle_info(message :: term(), state :: term()) :: term()
  @doc "GenServer's."
  @callback handle_continue(continue :: term(), state :: term()) :: term()
  @doc "GenServer's; the instance is closed after it."
  @callback terminate(reason :: term(), state :: term()) :: term()

  @optional_callbacks handle_import: 4,
                      handle_call: 3,
                      handle_cast: 2,
                      handle_info: 2,
                      handle_continue: 2,
                      terminate: 2

  @doc false
  defmacro __using__(opts) do
    quote location: :keep, bind_quoted: [opts: opts] do
      @behaviour Beamr.Server
      @beamr_server_child_spec opts

      @doc """
      A child specification for a supervisor; its options are those of `start_link/1`.
      """
      @spec child_spec(keyword()) :: Supervisor.child_spec()
      def child_spec(opts) do
        @beamr_server_child_spec
        |> Keyword.merge(id: __MODULE__)
        |> Keyword.merge(opts)
        |> Beamr.Server.child_spec()
        |> Map.update!(:start, fn {_server, function, args} -> {__MODULE__, function, args} end)
      end

      @doc """
      Starts the server. Options: those of `Beamr.Server.start_link/1`, and `arg:` for `init/1`.
      """
      @spec start_link(keyword()) :: GenServer.on_start()
      def start_link(opts), do: Beamr.Server.start_link([{:callback, __MODULE__} | opts])

      defoverridable child_spec: 1, start_link: 1
    end
  end

  @instance_options [
    :imports,
    :hosts,
    :stubs,
    :timeout,
    :scheduler,
    :max_depth,
    :max_memory,
    :max_table_elements,
    :fuel,
    :wasi
  ]
  @server_options [:module, :init, :on_trap, :name, :hibernate_after, :callback, :arg]
  @child_options [:id, :restart, :shutdown]

  # How much longer than a call's timeout its client waits: an import that hangs keeps the server
  # from answering.
  @grace 100
  @longest_wait 0xFFFFFFFF

  @doc """
  A child specification for a supervisor. Besides the options of `start_link/1`, `:id`,
  `:restart` and `:shutdown` override the defaults (`Beamr.Server`, `:permanent`, 5000).

  `module:` is compiled here, once, if it is not compiled yet. If that fails, starting the child
  answers the error.

      iex> spec = Beamr.Server.child_spec(module: "(module)", id: :guest, restart: :transient)
      iex> {spec.id, spec.restart}
      {:guest, :transient}
  """
  @spec child_spec(keyword()) :: Supervisor.child_spec()
  def child_spec(opts) do
    %{
      id: Keyword.get(opts, :id, __MODULE__),
      start: {__MODULE__, :start_link, [compiled(opts)]},
      restart: Keyword.get(opts, :restart, :permanent),
      shutdown: Keyword.get(opts, :shutdown, 5_000)
    }
  end

  @doc false
  @spec compiled(keyword()) :: keyword()
  def compiled(opts) do
    opts = Keyword.drop(opts, @child_options)

    with {:ok, source} <- Keyword.fetch(opts, :module),
         {:ok, module} <- load(source, opts) do
      Keyword.put(opts, :module, module)
    else
      _ -> opts
    end
  end

  @doc """
  Starts a server. Options:

    * `:module` - a `Beamr.Module`, WebAssembly bytes or text, or the path of a file (required);
    * `:imports`, `:wasi`, `:hosts`, `:stubs`, `:timeout`, `:scheduler`, `:max_depth`,
      `:max_memory`, `:max_table_elements`, `:fuel` - as for `Beamr.instantiate/2`;
    * `:init` - called once after instantiation: the name of an export without parameters, or a
      function that takes the instance. An error (a tuple or an exception) keeps the server from
      starting;
    * `:on_trap` - `:stop`, `:reset` or `:keep`, see the module's text. A reset calls `:init`
      again, and so does a restart;
    * `:name` and `:hibernate_after` - as for `GenServer.start_link/3`.

  A module that does not compile, link or start makes it `{:error, exception}`. Unknown options
  raise `ArgumentError`.
  """
  @spec start_link(keyword()) :: GenServer.on_start()
  def start_link(opts) when is_list(opts) do
    Keyword.validate!(opts, @instance_options ++ @server_options)
    check_on_trap!(Keyword.get(opts, :on_trap, :stop))
    check_init!(Keyword.get(opts, :init))

    unless Keyword.has_key?(opts, :module), do: raise(ArgumentError, ":module is required")

    # Refuses wrong values here, in the caller.
    {_imports, options} = opts |> Keyword.take(@instance_options) |> Beamr.instance_options()

    with {:ok, module} <- load(opts[:module], opts) do
      Beamr.check_fuel!(module, options.fuel)
      {gen_opts, opts} = Keyword.split(opts, [:name, :hibernate_after])
      GenServer.start_link(__MODULE__, Keyword.put(opts, :module, module), gen_opts)
    end
  end

  defp check_on_trap!(policy) when policy in [:stop, :reset, :keep], do: :ok

  defp check_on_trap!(policy) do
    raise ArgumentError, ":on_trap must be :stop, :reset or :keep, given: #{inspect(policy)}"
  end

  defp check_init!(init) when is_nil(init) or is_binary(init) or is_function(init, 1), do: :ok

  defp check_init!(init) do
    raise ArgumentError,
          ":init must be an export's name or a function of the instance, given: #{inspect(init)}"
  end

  @doc false
  @spec load(Beamr.Module.t() | binary(), keyword()) ::
          {:ok, Beamr.Module.t()} | {:error, Beamr.CompileError.t()}
  def load(%Beamr.Module{} = module, _opts), do: {:ok, module}

  def load(source, opts) when is_binary(source) do
    compile_opts = [fuel: Keyword.get(opts, :fuel) != nil]

    if source =~ ~r/\A(\0asm|\s*(\(|;;))/,
      do: Beamr.compile(source, compile_opts),
      else: Beamr.compile_file(source, compile_opts)
  end

  @doc """
  Calls the guest from inside a callback of a `use Beamr.Server` module, with a state that the
  guest's imports see and change; answers the result and the state after it. `opts` are those of
  `Beamr.call/4`. What a trap does here is up to the callback: `on_trap:` is for calls from
  outside.

      def handle_cast(:step, state) do
        {{:ok, []}, state} = Beamr.Server.run("step", [], state)
        {:noreply, state}
      end
  """
  @spec run(String.t() | Beamr.funcref(), [Beamr.value()], state, keyword()) ::
          {{:ok, [Beamr.value()]} | {:error, Exception.t()}, state}
        when state: term()
  def run(function, args, state, opts \\ []) do
    with_state(state, fn -> Beamr.call(self(), function, args, opts) end)
  end

  ## Clients

  @doc false
  # Asks a server of this node to make a call.
  @spec request(
          pid(),
          String.t() | Beamr.funcref(),
          list(),
          timeout(),
          Instance.scheduler(),
          boolean()
        ) :: {:ok, list()} | {:error, Exception.t()}
  def request(pid, function, args, timeout, scheduler, unsigned) do
    {deadline, wait} =
      case Instance.within_outer(timeout) do
        :infinity -> {:infinity, :infinity}
        timeout -> {now() + timeout, min(timeout + @grace, @longest_wait)}
      end

    GenServer.call(pid, {__MODULE__, function, args, deadline, scheduler, unsigned}, wait)
  catch
    :exit, {:timeout, {GenServer, :call, _args}} ->
      {:error, %CallError{reason: :timeout, function: function}}
  end

  @doc false
  # A call that the server makes of its own guest, in an import or another callback.
  @spec call_self(
          String.t() | Beamr.funcref(),
          list(),
          timeout(),
          Instance.scheduler(),
          boolean()
        ) :: {:ok, list()} | {:error, Exception.t()}
  def call_self(function, args, timeout, scheduler, unsigned) do
    case Process.get(__MODULE__) do
      nil -> exit({:noproc, {Beamr, :call, [self(), function, args]}})
      instance -> Instance.call(instance, function, args, timeout, scheduler, unsigned)
    end
  end

  defp now, do: System.monotonic_time(:millisecond)

  ## The server

  # The instance is in the process dictionary, where the imports that run in this process find
  # it; so is the state of the callback module while the guest runs.
  @state {__MODULE__, :state}

  defstruct [:module, :options, :callback, :init, :on_trap, :state, calls: 0, traps: 0]

  @impl true
  def init(opts) do
    callback = opts[:callback]

    server = %__MODULE__{
      module: opts[:module],
      options: Keyword.take(opts, @instance_options),
      callback: callback,
      init: opts[:init],
      on_trap: Keyword.get(opts, :on_trap, :stop)
    }

    case if(callback, do: callback.init(opts[:arg]), else: {:ok, nil}) do
      {:ok, state} -> start(%{server | state: state}, [])
      {:ok, state, extra} -> start(%{server | state: state}, [extra])
      other -> other
    end
  end

  defp start(server, extra) do
    case instantiate(server) do
      {:ok, server} ->
        List.to_tuple([:ok, server | extra])

      {:error, reason} ->
        # The error is the answer of start_link; a caller that traps no exits should live to see
        # it.
        with pid when is_pid(pid) <- parent(Process.get(:"$ancestors")), do: Process.unlink(pid)
        {:stop, reason}
    end
  end

  defp parent([pid | _]) when is_pid(pid), do: pid
  defp parent([name | _]) when is_atom(name), do: Process.whereis(name)
  defp parent(_none), do: nil

  # Makes the server's instance, the first or a fresh one, and puts it in its place: what `init:`
  # does by the server's pid, it does to this one. One that was there before is left to the
  # garbage collector, because others may just be reading it.
  defp instantiate(%{options: options, callback: callback} = server) do
    options =
      if callback && function_exported?(callback, :handle_import, 4),
        do: Keyword.update(options, :imports, otherwise(%{}, callback), &otherwise(&1, callback)),
        else: options

    {result, state} =
      with_state(server.state, fn ->
        with {:ok, instance} <- Beamr.instantiate(server.module, options) do
          Process.put(__MODULE__, instance)
          Guest.register(instance)
          call_init(server.init, instance, server.options)
        end
      end)

    with :ok <- result, do: {:ok, %{server | state: state}}
  end

  defp otherwise(imports, callback) when is_map(imports) do
    Map.put(imports, :otherwise, {__MODULE__, :handle_import, [callback]})
  end

  defp otherwise(imports, _callback), do: imports

  @doc false
  # What an import does that `imports:` does not have.
  @spec handle_import(module(), import_name(), Instance.t(), list()) :: term()
  def handle_import(callback, import, wasm, args) do
    case Process.get(@state) do
      {:state, state} ->
        {:reply, result, state} = callback.handle_import(import, args, wasm, state)
        Process.put(@state, {:state, state})
        result

      nil ->
        raise ArgumentError,
              "an import with state was called outside of the server's own calls; " <>
                "inside a callback, call the guest with Beamr.Server.run/4"
    end
  end

  defp call_init(nil, _instance, _options), do: :ok

  defp call_init(export, instance, options) when is_binary(export) do
    call_options = Keyword.take(options, [:timeout, :scheduler])
    with {:ok, _results} <- Beamr.call(instance, export, [], call_options), do: :ok
  end

  defp call_init(function, instance, _options) do
    case function.(instance) do
      {:error, reason} -> {:error, reason}
      _ -> :ok
    end
  rescue
    exception -> {:error, exception}
  end

  defp with_state(state, function) do
    outer = Process.put(@state, {:state, state})

    try do
      result = function.()
      {:state, state} = Process.get(@state)
      {result, state}
    after
      if outer, do: Process.put(@state, outer), else: Process.delete(@state)
    end
  end

  @impl true
  def handle_call(
        {__MODULE__, function, args, deadline, scheduler, unsigned},
        {client, _},
        server
      ) do
    case remaining(deadline) do
      0 ->
        {:reply, {:error, %CallError{reason: :timeout, function: function}}, server}

      timeout ->
        instance = Process.get(__MODULE__)

        {result, state} =
          with_state(server.state, fn ->
            Instance.call(instance, function, args, timeout, scheduler, unsigned, client)
          end)

        after_call(result, %{server | state: state, calls: server.calls + 1})
    end
  end

  def handle_call(request, from, server), do: forward(:handle_call, [request, from], server)

  defp remaining(:infinity), do: :infinity
  defp remaining(deadline), do: max(deadline - now(), 0)

  defp after_call({:error, %Trap{} = trap} = result, server) do
    server = %{server | traps: server.traps + 1}

    case server.on_trap do
      :keep -> {:reply, result, server}
      :stop -> {:stop, {:trap, trap}, result, server}
      :reset -> reset(result, server)
    end
  end

  defp after_call({:error, %{reason: :closed}} = result, server) do
    {:stop, :closed, result, server}
  end

  defp after_call(result, server), do: {:reply, result, server}

  defp reset(result, server) do
    case instantiate(server) do
      {:ok, server} ->
        :erlang.garbage_collect()
        {:reply, result, server}

      {:error, reason} ->
        {:stop, reason, result, server}
    end
  end

  @impl true
  def handle_cast(request, server), do: forward(:handle_cast, [request], server)

  @impl true
  def handle_info(message, server), do: forward(:handle_info, [message], server)

  @impl true
  def handle_continue(continue, server), do: forward(:handle_continue, [continue], server)

  @impl true
  def terminate(reason, %{callback: callback, state: state}) do
    if callback && function_exported?(callback, :terminate, 2),
      do: callback.terminate(reason, state)

    with %Instance{} = instance <- Process.get(__MODULE__), do: Beamr.close(instance)
  end

  # Hands a message to the callback module, and its state back into the server.
  defp forward(name, args, %{callback: callback} = server) do
    if callback && function_exported?(callback, name, length(args) + 1) do
      case apply(callback, name, args ++ [server.state]) do
        {:reply, reply, state} -> {:reply, reply, %{server | state: state}}
        {:reply, reply, state, extra} -> {:reply, reply, %{server | state: state}, extra}
        {:noreply, state} -> {:noreply, %{server | state: state}}
        {:noreply, state, extra} -> {:noreply, %{server | state: state}, extra}
        {:stop, reason, state} -> {:stop, reason, %{server | state: state}}
        {:stop, reason, reply, state} -> {:stop, reason, reply, %{server | state: state}}
        other -> {:stop, {:bad_return_value, other}, server}
      end
    else
      unhandled(name, args, server)
    end
  end

  # What GenServer does for a module without the callback.
  defp unhandled(:handle_info, [message], server) do
    require Logger

    Logger.error(
      "#{inspect(__MODULE__)} #{inspect(self())} received unexpected message: #{inspect(message)}"
    )

    {:noreply, server}
  end

  defp unhandled(name, args, server) do
    {:stop, {:unexpected, name, hd(args)}, server}
  end

  # For `:sys.get_status/1` and crash reports: what there is to know, without the guest's help.
  @doc false
  # A callback since OTP 25, of Elixir's behaviour since 1.17.
  if {:format_status, 1} in GenServer.behaviour_info(:callbacks), do: @impl(true)

  def format_status(status) do
    Map.replace_lazy(status, :state, fn %__MODULE__{} = server ->
      size =
        case Registry.lookup(Beamr.Registry, self()) do
          [{_pid, ref}] -> Beamr.Native.memory_size(ref, nil)
          [] -> :none
        end

      %{
        module: Beamr.Module.name(server.module),
        memory_size: if(match?({:ok, _bytes}, size), do: elem(size, 1)),
        calls: server.calls,
        traps: server.traps,
        on_trap: server.on_trap,
        state: server.state
      }
    end)
  end
end
